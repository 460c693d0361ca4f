"""A whole run: every setting's session over all cases, with progress, and a report even when it is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from fastgraph.bench.backends import BACKENDS, Setting
from fastgraph.bench.cases import Case
from fastgraph.bench.ceilings.measured import ceilings_of
from fastgraph.bench.ceilings.roofline import floors
from fastgraph.bench.plan import Plan
from fastgraph.bench.report.report import Report
from fastgraph.bench.report.terminal import table
from fastgraph.bench.results import CaseReport
from fastgraph.bench.session import session

WHOLE_RUN_S = 3600.0  # the time that is left follows from all that has been done


@dataclass(frozen=True)
class Run:
    """What to measure: all ``cases`` with all ``backends`` (option names) at each setting.

    ``left_out`` names, by case, backends that are not measured there, each with the reason that the report gives.
    ``absent`` names those that are not installed, with the pip line.
    """

    cases: tuple[Case, ...]
    backends: Sequence[str]
    settings: Sequence[Setting]
    plan: Plan
    command: str
    model_gpu: str | None = None
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def installed(backends: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Those of the backends (option names) that can be imported here, and a sentence for each of the others."""
    missing = {name: BACKENDS[name].missing() for name in backends}
    here = [name for name, reason in missing.items() if reason is None]
    return here, tuple(reason for reason in missing.values() if reason is not None)


def measure(run: Run, about: dict[str, Any], console: Console) -> Report:
    """Measures everything and shows each case's table when it is done. Ctrl-C ends it early with what there is."""
    done: list[CaseReport] = []
    complete = True
    try:
        with _nothing_compiled(), _progress(console, len(run.settings) * len(run.cases)) as tell:
            for setting in run.settings:
                with session(run.backends, setting, run.plan.processes) as running:
                    for case in run.cases:
                        out = run.left_out.get(case.name, {})
                        done.append(running.run(case, run.plan, ceilings_of(setting), progress=tell, left_out=out))
                        tell.advance()
                        console.print(table(done[-1], console.width, run.plan))
    except KeyboardInterrupt:
        complete = False
        console.print("stopped: the report has what was measured until now")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(run.command, date, about, run.plan, tuple(done), _modelled(run), complete, run.absent)


def _modelled(run: Run) -> tuple[dict[str, Any], ...]:
    """The modelled floors on the GPU that was named."""
    if run.model_gpu is None:
        return ()
    modelled = []
    for dtype in dict.fromkeys(setting.dtype for setting in run.settings):
        for case in run.cases:
            modelled += [asdict(one) for one in floors(case.name, case.build(), run.model_gpu, dtype)]
    return tuple(modelled)


class ProgressReport:
    """Says what is being done: a bar with the time that is left on a terminal, otherwise a line for each thing."""

    def __init__(self, console: Console, total: int, bar: Progress | None) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("starting", total=total) if bar else None
        self._cases, self._said = 0, ""

    def __call__(self, text: str, share: float) -> None:
        """Says that ``text`` is being done, and which share of the case has been, 0..1."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=text, completed=self._cases + share)
        elif text != self._said:
            self._console.print(f"... {text}", soft_wrap=True)
        self._said = text

    def advance(self) -> None:
        """One case is done."""
        self._cases += 1
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._cases)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[ProgressReport]:
    """The progress bar, where there is a terminal for it."""
    if not console.is_terminal:
        yield ProgressReport(console, total, None)
        return
    text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (text, BarColumn(20), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, speed_estimate_period=WHOLE_RUN_S) as bar:
        yield ProgressReport(console, total, bar)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """An empty cache on disk for torch.compile, so that its first-call times do not depend on earlier runs.

    PyTorch's precompiled headers have a place of their own and stay. The first run on a machine makes them: 8 s of
    processor time for torch.compile and 16 s for AOTInductor, with torch 2.14 on an AMD EPYC. Without them every
    compilation takes 7 to 10 s more.
    """
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)  # PyTorch itself sets it when it is imported
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before
