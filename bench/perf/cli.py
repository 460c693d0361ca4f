"""``python -m bench perf``: our kernels against the best peer and the machine's ceiling, case by case, with targets.

A benchmark, not a test: it says "short" beside what is under its target and exits 0 either way.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch

from fastgraph.bench.arguments import Parser, among, number, numbers, seconds
from fastgraph.bench.backends import BACKENDS, BASELINE, DTYPES, OURS, Backend, Setting
from fastgraph.bench.backends.torch_compile import TorchCompileOnce
from fastgraph.bench.machine import machine, machine_lines
from fastgraph.bench.perf import conv, gemm, targets
from fastgraph.bench.perf.optimize_cost import optimize_cost
from fastgraph.bench.perf.result import FastgraphFp32, Result, Sessions, against_target, header, line, small_batches
from fastgraph.bench.perf.tail import tails
from fastgraph.bench.perf.target import PLAN, Target
from fastgraph.bench.plan import Plan
from fastgraph.bench.session import Session
from fastgraph.bench.text import finite

QUICK = Plan(rounds=3, block_s=0.01, warm_up_s=0.1, case_s=0.3)

Measured = Iterator[tuple[str, dict[str, Any]]]
"""Lines as they are measured, each with what goes into ``perf.json``."""
OTHERS: dict[str, Callable[[Setting, Plan], Measured]] = {"tail": tails, "optimize": optimize_cost}
"""What is not a case against a target, by the name that ``--cases`` takes."""


def main(argv: Sequence[str]) -> int:
    """Measures, prints a line a case, and writes ``perf.json``; returns 0. Bad arguments end with status 2."""
    arguments = _parser().parse_args(argv)
    about = machine()
    print("\n".join(machine_lines(about)), flush=True)
    results: list[Result] = []
    others: list[dict[str, Any]] = []
    try:
        for threads in arguments.threads:
            for dtype in arguments.dtype:
                _measure(arguments, Setting(dtype, threads), results, others)
    except KeyboardInterrupt:
        print("stopped; what was measured is written", flush=True)
    shorts = [f"{r.report.case} ({r.dtype}, {r.threads} threads): {', '.join(r.short)}" for r in results if r.short]
    print(f"\nshort: {len(shorts)} of {len(results)} cases")
    for one in shorts:
        print(f"  {one}")
    command = shlex.join(["python", "-m", "bench", "perf", *argv])
    content = {"command": command, "machine": about, "results": [asdict(r) for r in results], "others": others}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "perf.json"
    path.write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


def _measure(
    arguments: argparse.Namespace, setting: Setting, results: list[Result], others: list[dict[str, Any]]
) -> None:
    """All chosen cases at one setting; results are added as they come."""
    of_setting: list[Result] = []
    for peers, group in _groups(targets.choose(arguments.cases, setting.dtype, arguments.quick), arguments.peers):
        backends = _backends(peers, setting)
        print(header(backends, setting), flush=True)
        with ExitStack() as stack:
            sessions = _sessions(backends, group, setting, stack)
            for target in group:
                result = against_target(sessions, target, _plan(arguments, target.plan))
                results.append(result)
                of_setting.append(result)
                print(line(result, backends), flush=True)
        _print_reasons(results[-len(group) :])
    if by_batch := {result.report.batch: result for result in of_setting if result.target == "deep"}:
        for text in small_batches(by_batch):
            print(text, flush=True)
    measured = [one.summary([result for result in of_setting if result.target == one.GROUP]) for one in (gemm, conv)]
    if setting == Setting(arguments.dtype[0], arguments.threads[0]):  # once is enough
        wanted = [other for name, other in OTHERS.items() if not arguments.cases or name in arguments.cases]
        measured += [other(setting, _plan(arguments, PLAN)) for other in wanted]
    for text, content in chain.from_iterable(measured):
        others.append(content)
        print(text, flush=True)


def _plan(arguments: argparse.Namespace, plan: Plan) -> Plan:
    """The plan with what the command line asks for otherwise."""
    asked = {"rounds": arguments.rounds, "block_s": arguments.block, "case_s": arguments.budget}
    return replace(QUICK if arguments.quick else plan, **{name: value for name, value in asked.items() if value})


def _backends(peers: Sequence[str], setting: Setting) -> dict[str, type[Backend]]:
    """Those that are measured: the peers and ours, in bf16 beside our fp32."""
    backends = {name: BACKENDS[name] for name in (*peers, OURS)}
    if "compile" in backends:
        backends["compile"] = TorchCompileOnce
    return backends | ({"fastgraph-fp32": FastgraphFp32} if setting.dtype == "bf16" else {})


def _sessions(
    backends: dict[str, type[Backend]], group: Sequence[Target], setting: Setting, stack: ExitStack
) -> Sessions:
    """All that the group needs."""
    ours, eager = any(t.whole_tiles for t in group), any(t.operator for t in group)
    return Sessions(
        Session(backends, setting, stack),
        Session({OURS: BACKENDS[OURS]}, setting, stack) if ours else None,
        Session({BASELINE: BACKENDS[BASELINE]}, setting, stack) if eager else None,
    )


def _groups(chosen: Sequence[Target], peers: Sequence[str] | None) -> Iterator[tuple[Sequence[str], list[Target]]]:
    """The targets by the peers that they are measured against; each part has workers of its own."""
    asked = None if peers is None else [name for name in peers if name != "none"]
    for by_default, group in groupby(chosen, key=lambda target: target.peers):
        yield by_default if asked is None else asked, list(group)


def _print_reasons(results: Sequence[Result]) -> None:
    """Why a backend has no figure, once for each reason."""
    seen = dict.fromkeys(
        f"  {row.backend}: {row.status}: {row.reason}" for r in results for row in r.report.rows if row.reason
    )
    for reason in seen:
        print(reason, flush=True)


def _parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m bench perf", description=__doc__)
    known = [*targets.names(), *OTHERS]
    parser.add_argument("--cases", type=among(known), default=[], metavar="A,B", help=f"of {', '.join(known)}")
    parser.add_argument("--peers", type=among([n for n in BACKENDS if n != OURS] + ["none"]), metavar="A,B")
    parser.add_argument("--dtype", type=among(tuple(DTYPES)), default=["fp32", "bf16"], metavar="A,B")
    default = list(dict.fromkeys((torch.get_num_threads(), 1)))
    parser.add_argument("--threads", type=numbers, default=default, metavar="N,M", help=f"default: {default}")
    add = parser.add_argument
    add(
        "--budget",
        type=seconds,
        metavar="S",
        help=f"seconds of timing (default: {PLAN.case_s:g}; gemm {gemm.PLAN.case_s:g}, conv {conv.PLAN.case_s:g})",
    )
    add("--rounds", type=number, help="at most so many interleaved rounds (default: 11)")
    add(
        "--block",
        type=seconds,
        metavar="S",
        help=f"seconds a block (default: {PLAN.block_s:g}; gemm {gemm.PLAN.block_s:g}, conv {conv.PLAN.block_s:g})",
    )
    add(
        "--quick",
        action="store_true",
        help="three short rounds a case, small grids: a look, not a result",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for perf.json (default: out)")
    return parser
