"""Many seeds in worker processes: one that crashes or hangs is a finding, not the end of the run."""

import json
import logging
import multiprocessing
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.generator import generate
from tests.fuzz.stages import STAGES, Finding, Report, check, stages_of

HANGS = 30.0  # seconds of the processor for one module
_STUCK = 10  # times as long without an answer is a hang too: a worker that waits takes no time of the processor
_START = 300.0  # seconds for a new worker's imports
_READY = "ready"
_LIFE = 400  # modules that a worker takes: torch.compile and torch.export keep memory


def _work(connection: Connection, stages: Sequence[str], sparse: bool) -> None:
    """A worker: seeds come in, reports go out; it ends with its process."""
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    while (seed := connection.recv()) is not None:
        chosen = stages_of(seed, tuple(stages)) if sparse else tuple(stages)
        try:
            connection.send(check(generate(seed), chosen))
        except Exception:
            connection.send(Report(seed, [Finding(seed, "process", "the fuzzer raises", traceback.format_exc())]))


def _processor_time(pid: int) -> float:
    """Seconds that a process has computed; where Linux's /proc is missing, those that have passed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class _Worker:
    process: Any
    connection: Connection
    seed: int | None = None
    since: float = 0.0  # when it was given the seed, or was ready for it
    used: float = 0.0  # the processor's time, by then
    ready: bool = False
    done: int = 0

    def give(self, seed: int) -> None:
        self.seed = seed
        self.begin()
        self.connection.send(seed)

    def begin(self) -> None:
        self.since, self.used = time.monotonic(), _processor_time(self.process.pid)

    def hangs(self, limit: float) -> bool:
        waited = time.monotonic() - self.since
        if not self.ready:
            return waited > _START
        return waited > _STUCK * limit or (waited > limit and _processor_time(self.process.pid) - self.used > limit)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@dataclass
class Summary:
    """What a run came to."""

    modules: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    foreign: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        """Counts one module."""
        self.modules += 1
        self.findings += report.findings
        self.refused += [(report.seed, stage, reason) for stage, reason in report.refused.items()]
        self.foreign.update(report.foreign)
        self.stages.update(report.stages)

    @property
    def grave(self) -> list[Finding]:
        """The findings that count as a failure."""
        return [finding for finding in self.findings if not finding.minor]

    def share_refused(self, stage: str) -> float:
        """Refused modules of all that a stage was given."""
        return sum(s == stage for _, s, _ in self.refused) / max(self.stages[stage], 1)

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {count}" for stage, count in self.stages.items())
        lines = [f"{self.modules} modules in {self.seconds:.0f} s ({stages}): {len(self.grave)} findings"]
        for title, rows in (
            ("findings", [((f.stage, _group(f)), f.seed) for f in self.grave]),
            ("minor", [((f.stage, _group(f)), f.seed) for f in self.findings if f.minor]),
            ("refused", [((stage, reason), seed) for seed, stage, reason in self.refused]),
        ):
            lines += _table(title, rows)
        lines += [f"torch's own backend differs in the same way: {dict(self.foreign)}"] if self.foreign else []
        return "\n".join(lines)


def _group(finding: Finding) -> str:
    """A kind; exceptions by their first words too."""
    if "raises" not in finding.kind:
        return finding.kind
    words = re.sub(r"\b\d[\d.e+-]*", "N", re.sub(r"^call \d.*?: \w+: ", "", finding.detail)).split()[:12]
    return f"{finding.kind}: {' '.join(words)}"


def _table(title: str, rows: list[tuple[tuple[str, str], int]]) -> list[str]:
    counts = Counter(key for key, _ in rows)
    lines = [f"{title}: {len(rows)}"] if rows else []
    for (stage, what), count in counts.most_common():
        seeds = [seed for key, seed in rows if key == (stage, what)][:4]
        lines.append(f"  {count:5} {stage:9} {what[:150]}  (seeds {', '.join(map(str, seeds))})")
    return lines


def run(
    seeds: Sequence[int],
    *,
    stages: Sequence[str] = STAGES,
    jobs: int = 2,
    sparse: bool = True,
    budget: float | None = None,
    log: Path | None = None,
    hangs: float = HANGS,
    work: Callable[[Connection, Sequence[str], bool], None] = _work,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Takes the modules of all seeds through `stages`.

    sparse: the costly stages come on a share of the seeds (`stages_of`). budget: ends after so many seconds. log: gets
    a JSON line for every finding. hangs: the seconds that a module may take. work: what a worker does.
    """
    summary, began = Summary(), time.monotonic()
    start = lambda: _start(work, stages, sparse)  # noqa: E731
    lines = log.open("w") if log else None
    try:
        for report in _reports(iter(seeds), start, jobs, hangs, None if budget is None else began + budget):
            summary.add(report)
            summary.seconds = time.monotonic() - began
            for finding in report.findings if lines else ():
                print(json.dumps(asdict(finding)), file=lines, flush=True)
            if summary.modules % 100 == 0:
                say(f"{summary.modules} of {len(seeds)}, {summary.seconds:.0f} s, {len(summary.grave)} findings")
    finally:
        if lines:
            lines.close()
    return summary


def _enter(connection: Connection, work: Callable[..., None], stages: Sequence[str], sparse: bool) -> None:
    connection.send(_READY)
    work(connection, stages, sparse)


def _start(work: Callable[..., None], stages: Sequence[str], sparse: bool) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_enter, args=(theirs, work, tuple(stages), sparse), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _reports(
    seeds: Iterator[int], start: Callable[[], _Worker], jobs: int, hangs: float, until: float | None
) -> Iterator[Report]:
    """The reports of all seeds, as they come."""
    workers: list[_Worker] = []
    try:
        while True:
            while len(workers) < jobs and (until is None or time.monotonic() < until):
                if (seed := next(seeds, None)) is None:
                    break
                workers.append(start())
                workers[-1].give(seed)
            if not workers:
                return
            wait([w.connection for w in workers], timeout=1.0)
            for worker in list(workers):
                report = _answer(worker, hangs)
                if report is not None:
                    yield report
                over = until is not None and time.monotonic() >= until
                if worker.seed is None:
                    spent = over or worker.done >= _LIFE or not worker.process.is_alive()
                    following = None if spent else next(seeds, None)
                    if following is None:
                        worker.end()
                        workers.remove(worker)
                    else:
                        worker.give(following)
    finally:
        for worker in workers:
            worker.end()


def _answer(worker: _Worker, hangs: float) -> Report | None:
    """The report that is there, one that tells of a crash or a hang, or None: still at work."""
    seed = worker.seed
    assert seed is not None
    try:
        if worker.connection.poll():
            report = worker.connection.recv()
            if report == _READY:
                worker.ready = True
                worker.begin()
                return None
            assert isinstance(report, Report)
            worker.seed, worker.done = None, worker.done + 1
            return report
    except (EOFError, OSError):
        worker.process.join(5)
        return _lost(worker, seed, "crash", f"the process ended with status {worker.process.exitcode}")
    if worker.hangs(hangs):
        worker.process.kill()
        return _lost(worker, seed, "hang", f"no answer after {hangs:.3g} s of the processor")
    return None


def _lost(worker: _Worker, seed: int, kind: str, detail: str) -> Report:
    worker.seed = None
    worker.process.join(5)
    return Report(seed, [Finding(seed, "process", kind, detail, generate(seed).source)])
