"""The command line of ``python -m bench``: arguments, the run over all cases, the report's files."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp

import torch
from rich.console import Console

from fastgraph.bench import arguments, cases
from fastgraph.bench.arguments import ALL, ZOO_BACKENDS
from fastgraph.bench.backends import BACKENDS, OURS_NAME, Setting
from fastgraph.bench.cases import Case
from fastgraph.bench.machine import machine, machine_lines
from fastgraph.bench.perf import cli as perf
from fastgraph.bench.plan import DEFAULT, MLPERF_QUERIES, QUICK, Plan
from fastgraph.bench.report.compare import compare
from fastgraph.bench.report.device_comparison import device_comparison
from fastgraph.bench.report.markdown import markdown
from fastgraph.bench.report.page import page
from fastgraph.bench.report.picture import draw
from fastgraph.bench.report.report import Report, ReportError
from fastgraph.bench.report.summary import summaries
from fastgraph.bench.report.terminal import comparison_table, device_table, modelled_table, summary_table
from fastgraph.bench.runs import Run, installed, measure
from fastgraph.bench.timing import CALLS_FOR_P99
from fastgraph.bench.user_model import UsageError, user_cases
from fastgraph.bench.zoo.cases import is_zoo, zoo_cases
from fastgraph.bench.zoo.entry import Entry
from fastgraph.data import digits, photograph
from fastgraph.export.user_model import asked_for

MANY_ROUNDS = 1000  # more than fit into a budget
WIDTH = 200  # of the tables where the output is no terminal
BATCHES = {"deep": (1, 16, 1024), "net": (1, 4)}
QUICK_BATCHES = {"deep": (1,), "net": (1,)}
MODE_BATCHES = {"single-stream": QUICK_BATCHES, "offline": {"deep": (8192,), "net": (16,)}, "server": QUICK_BATCHES}
SERVER_S = 10.0  # of queries for a backend at most, unless --budget says otherwise
SERVER_ROUNDS = 5  # long ones: a queue needs time to grow
AT_ONCE = Plan(rounds=9, block_s=0.2, warm_up_s=0.5, case_s=20.0)
QUICK_BACKENDS = ("eager", "compile", "onnxruntime", "fastgraph")


def main(argv: Sequence[str]) -> int:
    """Measures and reports.

    Returns:
        The exit status: 0, or 1 when fastgraph itself was wrong or failed. Bad arguments or missing data end the
        process with status 2 and one line.
    """
    if argv[:1] == ["perf"]:
        return perf.main(argv[1:])
    if argv[:1] == ["compare"]:
        return compare_reports(argv[1:])
    if argv[:1] == ["picture"]:
        return draw_picture(argv[1:])
    parser = arguments.parser()
    given = parser.parse_args(argv)
    out: Path = given.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):  # said before anything is measured, and leaves nothing behind
            pass
    except OSError as error:
        parser.error(f"argument --out: cannot write to the folder: {error}")
    try:
        chosen, settings, plan = chosen_cases(given), chosen_settings(given), chosen_plan(given)
        backends, absent = installed(chosen_backends(given))
        if not backends:
            raise UsageError(f"--backends: none of them is installed: {'; '.join(absent)}")
    except (ImportError, ValueError, UsageError) as error:
        parser.error(str(error))
    console = _console()
    about = machine()
    for line in machine_lines(about):
        console.print(line, soft_wrap=True)
    for one in absent:
        console.print(f"not measured: {one}", soft_wrap=True)
    if not plan.tight:
        console.print(str(plan), soft_wrap=True)
    command = shlex.join(["python", "-m", "bench", *argv])
    left_out = chosen_left_out(given, chosen)
    run = Run(tuple(chosen), backends, settings, plan, command, given.model_gpu, left_out, absent)
    report = measure(run, about, console)
    if overview := summaries(report.cases):
        console.print(summary_table(overview, console.width))
    if devices := device_comparison(report.cases):
        console.print(device_table(devices))
    if report.modelled:
        console.print(modelled_table(report.modelled))
    save(report, out, console)
    ours = [row for case in report.cases for row in case.rows if row.backend == OURS_NAME]
    return 1 if any(row.status in ("wrong", "failed") for row in ours) else 0


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for."""
    batches = QUICK_BATCHES if given.quick or given.processes > 1 else MODE_BATCHES.get(given.mode, BATCHES)
    if is_zoo(given.model):
        return zoo_cases(given.model, lambda entry: given.batches or zoo_batches(given, entry), given.input_shape)
    builders = {"deep": cases.deep, "net": cases.net}
    if given.model in (*builders, "all"):
        if given.input_shape is not None:
            raise UsageError("--input-shape is for a model of your own; deep and net have theirs")
        names = list(builders) if given.model == "all" else [given.model]
        digits()  # what is missing is said before anything is measured
        photograph()
        return [case for name in names for case in builders[name](given.batches or batches[name])]
    return user_cases(*asked_for(given.model, given.input_shape), given.batches or batches["deep"])


def zoo_batches(given: argparse.Namespace, entry: Entry) -> Sequence[int]:
    """The batch sizes of a network in the mode."""
    if given.mode == "offline":
        return [entry.offline]
    return [1] if given.quick or given.processes > 1 or given.mode != "rounds" else entry.batches


def chosen_backends(given: argparse.Namespace) -> list[str]:
    """The backends' option names."""
    if given.backends is not None:
        return list(BACKENDS) if ALL in given.backends else given.backends
    return list(QUICK_BACKENDS if given.quick else ZOO_BACKENDS if is_zoo(given.model) else BACKENDS)


def chosen_left_out(given: argparse.Namespace, chosen: Sequence[Case]) -> dict[str, dict[str, str]]:
    """What takes too long for a run that did not ask for it by name: by case and backend, with the reason."""
    if given.backends is not None:
        return {}
    first = {case.model: case for case in reversed(chosen)}
    reason = f"compiled for the first batch size alone to save time; --backends {ALL} has it at every one"
    slow = {name: reason for name, backend in BACKENDS.items() if backend.slow_to_compile}
    return {case.name: slow for case in chosen if case is not first[case.model]}


def chosen_settings(given: argparse.Namespace) -> list[Setting]:
    """The settings, one after another: CPU, then CUDA where it is asked for."""
    threads = given.threads or torch.get_num_threads()
    cuda = torch.cuda.is_available()
    if given.mode == "server" or given.pause or given.processes > 1:
        if given.device == "cuda":
            raise UsageError("--device cuda: pauses, --processes and mode server are for the CPU")
        cuda = False
    if given.device == "cuda" and not cuda:
        raise UsageError("--device cuda: there is no CUDA device here; allowed: auto, cpu")
    chosen = []
    for dtype in given.dtype:
        if given.device != "cuda":
            chosen.append(Setting(dtype, threads))
        if given.device == "cuda" or (given.device == "auto" and cuda):
            on_cuda = Setting(dtype, threads, "cuda")
            graph, cold = replace(on_cuda, launch="graph"), replace(on_cuda, cache="cold")
            chosen += [on_cuda, replace(on_cuda, copies=True), graph, cold]
    return chosen


def chosen_plan(given: argparse.Namespace) -> Plan:
    """How long to measure, and how calls come; UsageError where options do not go together."""
    if (given.rate is None) == (given.mode == "server"):
        raise UsageError("--rate: mode server needs it, no other mode has it")
    if given.pause and (given.mode not in ("rounds", "single-stream") or given.processes > 1):
        raise UsageError("--pause: goes with the modes rounds and single-stream, and with one process")
    if given.processes > 1 and given.mode != "rounds":
        raise UsageError(f"--processes: goes with mode rounds; got mode {given.mode}")
    if given.mode == "server":
        return server_plan(given)
    plan = QUICK if given.quick else AT_ONCE if given.processes > 1 else DEFAULT
    return replace(
        plan,
        rounds=given.rounds or (MANY_ROUNDS if given.budget else plan.rounds),
        case_s=given.budget or plan.case_s,
        mode=given.mode,
        min_calls=MLPERF_QUERIES if given.mode == "single-stream" else 0,
        pause_s=given.pause,
        processes=given.processes,
    )


def server_plan(given: argparse.Namespace) -> Plan:
    """As many queries as the 99th percentile needs, where the time is enough for them."""
    rounds = given.rounds or SERVER_ROUNDS
    seconds = given.budget or min(SERVER_S, CALLS_FOR_P99 / given.rate)
    everybody_s = 2 * seconds * len(BACKENDS)  # the number of rounds stays
    return replace(
        QUICK, rounds=rounds, block_s=seconds / rounds, case_s=everybody_s, mode="server", rate_per_s=given.rate
    )


def compare_reports(argv: Sequence[str]) -> int:
    """Prints how two reports compare; status 1 where there is a regression, 2 where one cannot be read."""
    parser = arguments.compare_parser()
    given = parser.parse_args(argv)
    try:
        before, after = Report.load(given.before), Report.load(given.after)
    except ReportError as error:
        parser.error(str(error))
    try:
        comparisons = compare(before, after, given.backends, given.threshold, given.absolute)
    except ValueError as error:
        parser.error(str(error))
    if not comparisons:
        parser.error(f"{given.before}: has no speed of {', '.join(given.backends)}: there is nothing to compare")
    _console().print(comparison_table(comparisons))
    return 1 if any(one.regression for one in comparisons) else 0


def draw_picture(argv: Sequence[str]) -> int:
    """Draws a report's plot; status 2 where that cannot be done."""
    parser = arguments.picture_parser()
    given = parser.parse_args(argv)
    try:
        written = draw(Report.load(given.report), given.out)
    except (ReportError, ImportError, RuntimeError, OSError) as error:
        parser.error(str(error).strip().splitlines()[0])
    print(f"written: {', '.join(map(str, written))}")
    return 0


def save(report: Report, out: Path, console: Console) -> None:
    """Writes the report's files and says where they are; the page only where Plotly is installed."""
    written = {"report.json": report.to_json(), "report.md": markdown(report)}
    try:
        written["report.html"] = page(report)
    except ModuleNotFoundError as error:
        console.print(f"no report.html: {error}")
    try:
        _write(written, out)
    except OSError as error:
        out = Path(mkdtemp(prefix="bench-"))
        console.print(f"python -m bench: error: cannot write to the folder: {error}; it went to {out}", soft_wrap=True)
        _write(written, out)
        raise SystemExit(2) from error
    console.print(f"report: {', '.join(str(out / name) for name in written)}; again: {report.command}", soft_wrap=True)


def _console() -> Console:
    """Where tables are printed: as wide as the terminal, or as they are wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)


def _write(texts: dict[str, str], out: Path) -> None:
    """The texts as files."""
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
