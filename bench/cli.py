"""The command line of ``python -m bench``: arguments, the run over all cases, the report's files."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from rich.console import Console

from bench.cases import MODELS, Case, cases
from bench.measure import DEFAULT, QUICK, Plan
from bench.report import as_json, machine, machine_lines, table
from bench.run import CaseReport, run_case
from bench.runners import OURS, RUNNERS, Runner

WIDTH = 150  # of the tables where the output is no terminal


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with ``message``."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None, runners: Sequence[Runner] = RUNNERS) -> int:
    """Measures and reports.

    Returns:
        The exit status: 0, or 1 when fastgraph itself was wrong or failed. Bad arguments or missing data end the
        process with status 2 and one line.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder: {error}")
    try:
        chosen, about = cases(arguments.model, arguments.quick), machine()
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    plan = QUICK if arguments.quick else DEFAULT
    console = Console(record=True, width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
    for line in machine_lines(about):
        console.print(line, soft_wrap=True)
    with contextlib.nullcontext() if arguments.quick else _nothing_compiled():
        reports = [_run_and_show(case, runners, plan, console) for case in chosen]
    command = shlex.join(["python", "-m", "bench", *(sys.argv[1:] if argv is None else argv)])
    (arguments.out / "report.json").write_text(as_json(reports, about, plan, command), encoding="utf-8")
    (arguments.out / "report.txt").write_text(console.export_text(), encoding="utf-8")
    console.print(f"report: {arguments.out / 'report.json'}, report.txt; again: {command}", soft_wrap=True)
    ours = [row for report in reports for row in report.rows if row.backend == OURS.name]
    return 1 if any(row.status != "ok" for row in ours) else 0


def _parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m bench", description="Throughput of both reference models, backend by backend.")
    parser.add_argument("--model", choices=(*MODELS, "all"), default="all", help="which model (default: all)")
    parser.add_argument("--quick", action="store_true", help="batch 1 and short rounds: a look, not a result")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the report (default: out)")
    parser.add_argument("--threads", type=_positive, help="threads of every backend (default: as PyTorch chooses)")
    return parser


def _positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text!r}")
    return int(text)


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """An empty cache on disk for torch.compile, so that its first-call times do not depend on earlier runs.

    The first case then pays for precompiling PyTorch's headers too, as on a fresh machine: 7 to 20 s more there,
    measured on 2 cores of an AMD EPYC with torch 2.14.
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


def _run_and_show(case: Case, runners: Sequence[Runner], plan: Plan, console: Console) -> CaseReport:
    """The case's report, its table already on the screen."""
    report = run_case(case, runners, plan)
    console.print(table(report))
    return report
