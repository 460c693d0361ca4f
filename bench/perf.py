"""``python -m bench perf``: our kernels against the best peer and the machine's ceiling, case by case, with targets.

A benchmark, not a test: it says "short" beside what is under its target and exits 0 either way.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgraph.bench import extras, targets
from fastgraph.bench.arguments import Parser, among, number, numbers, seconds
from fastgraph.bench.backends import BACKENDS, DTYPES, OURS, Backend, Setting
from fastgraph.bench.backends.torch_compile import TorchCompile
from fastgraph.bench.machine import machine, machine_lines
from fastgraph.bench.measure import Plan
from fastgraph.bench.perf_result import FastgraphFp32, Result, against_target, header, line, small_batches
from fastgraph.bench.session import Session
from fastgraph.bench.targets import Target
from fastgraph.bench.text import finite

PEERS = ("eager", "compile", "aotinductor", "onnxruntime", "openvino")
CHEAP_PEERS = ("eager", "onnxruntime", "openvino")  # for the other shapes, where compiling each would take minutes
NETS_PEERS = ("eager",)  # which nothing may be below
BF16_PEERS = ("eager", "openvino")


class TorchCompileOnce(TorchCompile):
    """Compiled once for all batch sizes: once for each would take minutes."""

    any_batch = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model."""
        torch.compiler.reset()
        self._model, self._device = torch.compile(model, dynamic=True), setting.device


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
    chosen = targets.choose(arguments.cases, setting.dtype)
    wants = [name for name in extras.EXTRAS if not arguments.cases or name in arguments.cases]
    if setting != Setting(arguments.dtype[0], arguments.threads[0]):
        wants = []  # once is enough
    plan = Plan(arguments.rounds, arguments.block, warm_up_s=0.5, case_s=arguments.budget)
    for peers, group in _groups(chosen, arguments.peers, setting):
        backends: dict[str, type[Backend]] = {name: BACKENDS[name] for name in peers} | {OURS: BACKENDS[OURS]}
        if "compile" in backends:
            backends["compile"] = TorchCompileOnce
        if setting.dtype == "bf16":
            backends["fastgraph-fp32"] = FastgraphFp32
        print(header(backends, setting), flush=True)
        with ExitStack() as stack:
            session = Session(backends, setting, stack)
            alone = Session({OURS: backends[OURS]}, setting, stack) if any(t.neighbour for t in group) else None
            for target in group:
                result = against_target(session, alone, target, plan)
                results.append(result)
                print(line(result, backends), flush=True)
        _print_reasons(results[-len(group) :])
    if group_16 := {r.report.batch: r for r in results if r.target == "deep" and _is(r, setting)}:
        for said in small_batches(group_16):
            print(said, flush=True)
    for name in wants:
        for said, content in extras.EXTRAS[name](setting, plan):
            others.append(content)
            print(said, flush=True)


def _is(result: Result, setting: Setting) -> bool:
    return (result.dtype, result.threads) == (setting.dtype, setting.threads)


def _groups(
    chosen: Sequence[Target], peers: Sequence[str] | None, setting: Setting
) -> Iterator[tuple[Sequence[str], list[Target]]]:
    """The cases by the peers that they are measured against; each group has workers of its own."""
    models = [t for t in chosen if t.group in ("deep", "net")]
    nets = [t for t in chosen if t.group == "nets"]
    others = [t for t in chosen if t.group not in ("deep", "net", "nets")]
    by_default: Sequence[str] = BF16_PEERS if setting.dtype == "bf16" else PEERS
    if models:
        yield by_default if peers is None else _without_none(peers), models
    if others:
        yield CHEAP_PEERS if peers is None else _without_none(peers), others
    if nets:
        yield NETS_PEERS if peers is None else _without_none(peers), nets


def _without_none(peers: Sequence[str]) -> list[str]:
    """The peers named; "none" stands for an empty list."""
    return [name for name in peers if name != "none"]


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
    known = [*targets.names(), *extras.EXTRAS]
    parser.add_argument("--cases", type=among(known), default=[], metavar="A,B", help=f"of {', '.join(known)}")
    parser.add_argument("--peers", type=among([n for n in BACKENDS if n != OURS] + ["none"]), metavar="A,B")
    parser.add_argument("--dtype", type=among(tuple(DTYPES)), default=["fp32", "bf16"], metavar="A,B")
    default = list(dict.fromkeys((torch.get_num_threads(), 1)))
    parser.add_argument("--threads", type=numbers, default=default, metavar="N,M", help=f"default: {default}")
    parser.add_argument(
        "--budget", type=seconds, default=3.0, metavar="S", help="seconds of timing a case (default: 3)"
    )
    parser.add_argument("--rounds", type=number, default=11, help="at most so many interleaved rounds (default: 11)")
    parser.add_argument("--block", type=seconds, default=0.04, metavar="S", help="seconds a block (default: 0.04)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for perf.json (default: out)")
    return parser
