"""``python -m bench perf``: our kernels against the best peer and the machine's ceiling, case by case, with targets.

A benchmark, not a test: it says "short" beside what is under its target and exits 0 either way.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench import extras, targets
from bench.arguments import Parser, among, number, numbers, seconds
from bench.backends import BACKENDS, DTYPES, OURS, Backend, Setting
from bench.backends.fastgraph_direct import FastgraphDirect
from bench.backends.torch_compile import TorchCompile
from bench.cases import Case, deep, net
from bench.crew import Worker, WorkerFailed
from bench.machine import machine, machine_lines
from bench.measure import Plan
from bench.nursery import Nursery
from bench.session import CaseReport, CeilingBlocks, Session
from bench.targets import CLIFF, Target
from bench.text import duration, finite

PEERS = ("eager", "compile", "aotinductor", "onnxruntime", "openvino")
CHEAP_PEERS = ("eager", "onnxruntime", "openvino")  # for the other shapes, where compiling each would take minutes
BF16_PEERS = ("eager", "openvino")
EXTRAS = ("tail", "optimize")
CONTENDER = 1.5  # a backend slower than the fastest by more than this is timed in three rounds only
TAIL = ((16, "deep", 20_000, 3.0), (1, "net", 2_000, 2.5))  # batch, model, calls, how many times the idle p99
OPTIMIZE_S, PACKING_BYTES_PER_S, PACKED_RATIO = 5e-3, 1e9, 1.1


class TorchCompileOnce(TorchCompile):
    """Compiled once for all batch sizes: once for each would take minutes."""

    any_batch = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model."""
        torch.compiler.reset()
        self._model, self._device = torch.compile(model, dynamic=True), setting.device


class FastgraphFp32(FastgraphDirect):
    """Our own fp32, beside bf16 in the same rounds."""

    name = "fastgraph fp32"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """In fp32, whatever the setting."""
        super().prepare(model, x, replace(setting, dtype="fp32"))


@dataclass(frozen=True)
class Result:
    """One case against its target. ``share`` is of the ceiling ``target.ceiling``, 0..1; ``short`` names what is
    under its target."""

    target: str
    threads: int
    dtype: str
    report: CaseReport
    best_peer: str | None
    ratio: float | None
    ratio_target: float | None
    ceiling: str
    share: float | None
    share_target: float | None
    fp32_ratio: float | None
    fp32_ratio_target: float | None
    cliff: float | None
    short: tuple[str, ...]


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
    for line in shorts:
        print(f"  {line}")
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
    wants = [name for name in EXTRAS if not arguments.cases or name in arguments.cases]
    if setting != Setting(arguments.dtype[0], arguments.threads[0]):
        wants = []  # once is enough
    plan = Plan(arguments.rounds, arguments.block, warm_up_s=0.5, case_s=arguments.budget)
    for peers, group in _groups(chosen, arguments.peers, setting):
        backends: dict[str, type[Backend]] = {name: BACKENDS[name] for name in peers} | {OURS: BACKENDS[OURS]}
        if "compile" in backends:
            backends["compile"] = TorchCompileOnce
        if setting.dtype == "bf16":
            backends["fastgraph-fp32"] = FastgraphFp32
        print(_header(backends, setting), flush=True)
        with ExitStack() as stack:
            session = Session(backends, setting, stack)
            alone = Session({OURS: backends[OURS]}, setting, stack) if any(t.neighbour for t in group) else None
            for target in group:
                result = _one(session, alone, target, plan)
                results.append(result)
                print(_line(result, backends), flush=True)
        _print_reasons(results[-len(group) :])
    if group_16 := {r.report.batch: r for r in results if r.target == "deep" and _is(r, setting)}:
        for line in _small_batches(group_16):
            print(line, flush=True)
    for name in wants:
        for line, content in _EXTRAS[name](setting, plan):
            others.append(content)
            print(line, flush=True)


def _is(result: Result, setting: Setting) -> bool:
    return (result.dtype, result.threads) == (setting.dtype, setting.threads)


def _groups(
    chosen: Sequence[Target], peers: Sequence[str] | None, setting: Setting
) -> Iterator[tuple[Sequence[str], list[Target]]]:
    """The cases by the peers that they are measured against; each group has workers of its own."""
    models = [t for t in chosen if t.group in ("deep", "net")]
    others = [t for t in chosen if t.group not in ("deep", "net")]
    by_default: Sequence[str] = BF16_PEERS if setting.dtype == "bf16" else PEERS
    if models:
        yield by_default if peers is None else _without_none(peers), models
    if others:
        yield CHEAP_PEERS if peers is None else _without_none(peers), others


def _without_none(peers: Sequence[str]) -> list[str]:
    """The peers named; "none" stands for an empty list."""
    return [name for name in peers if name != "none"]


def _one(session: Session, alone: Session | None, target: Target, plan: Plan) -> Result:
    """Measures one case, and its neighbour, where it has one, in the session without peers."""
    report = _run(session, target.case, target.ceiling, plan)
    share = _share(report, target.ceiling)
    ours = report.row(BACKENDS[OURS].name)
    assert ours is not None
    peers = {
        row.backend: row.timing.median_s
        for row in report.rows
        if row.timing is not None and not row.backend.startswith("fastgraph")
    }
    best = min(peers, key=lambda name: peers[name]) if peers else None
    median_s = ours.timing.median_s if ours.timing else None
    ratio = peers[best] / median_s if best and median_s else None
    fp32 = report.row(FastgraphFp32.name)
    fp32_ratio = fp32.timing.median_s / median_s if fp32 and fp32.timing and median_s else None
    cliff = None
    if target.neighbour is not None and alone is not None and share is not None:
        other = _share(_run(alone, target.neighbour, target.ceiling, plan), target.ceiling)
        cliff = other / share if other else None
    short = [
        name
        for name, reached, wanted in (
            ("ratio", ratio, target.ratio),
            ("ceiling", share, target.share),
            ("ratio to fp32", fp32_ratio, target.fp32_ratio),
            ("cliff", cliff and -cliff, -CLIFF if target.neighbour else None),
        )
        if wanted is not None and (reached is not None) and reached < wanted
    ]
    if median_s is None:
        short.append(f"{ours.status}: {ours.reason}")
    return Result(
        target=target.group,
        threads=session.setting.threads,
        dtype=session.setting.dtype,
        report=report,
        best_peer=best,
        ratio=ratio,
        ratio_target=target.ratio,
        ceiling=target.ceiling,
        share=share,
        share_target=target.share,
        fp32_ratio=fp32_ratio,
        fp32_ratio_target=target.fp32_ratio,
        cliff=cliff,
        short=tuple(short),
    )


def _run(session: Session, case: Case, ceiling: str, plan: Plan) -> CaseReport:
    """The case with its ceilings."""
    compute = "bf16" if session.setting.dtype == "bf16" else "fma"
    names = ("weights",) if ceiling == "weights" else ("fma",) if compute == "fma" else ("fma", "bf16")
    return session.run(case, plan, CeilingBlocks(names), CONTENDER)


def _share(report: CaseReport, ceiling: str) -> float | None:
    """Share of the ceiling, 0..1: round by round, since the machine's speed moves, then the median."""
    ours = report.row(BACKENDS[OURS].name)
    name = "bf16" if ceiling == "fma" and "bf16" in report.ceilings else ceiling
    if ours is None or ours.timing is None or report.work is None or name not in report.ceilings:
        return None
    amount = report.work.weight_bytes if ceiling == "weights" else report.work.flops
    pairs = zip(ours.timing.round_medians_s, report.ceilings[name], strict=False)  # slow ones sit out later rounds
    return median(amount / seconds / rate for seconds, rate in pairs)


def _header(backends: dict[str, type[Backend]], setting: Setting) -> str:
    """The line over the columns."""
    names = "".join(f"{name:>16}" for name in backends)
    return f"\n{setting.dtype}, {setting.threads} threads\n{'case':<46}{names}   best peer / ours, share of the ceiling"


def _line(result: Result, backends: dict[str, type[Backend]]) -> str:
    """One case."""
    rows = {row.backend: row for row in result.report.rows}
    cells = []
    for one in backends.values():
        row = rows[one.name]
        cells.append(f"{duration(row.timing.median_s) if row.timing else row.status:>16}")
    said = [
        _against("", result.ratio, result.ratio_target, "ratio" in result.short, ".2f"),
        _against(f"{result.ceiling} ", result.share, result.share_target, "ceiling" in result.short, ".0%"),
    ]
    if result.fp32_ratio_target or result.fp32_ratio:
        short = "ratio to fp32" in result.short
        said.append(_against("to fp32 ", result.fp32_ratio, result.fp32_ratio_target, short, ".2f"))
    if result.cliff is not None:
        said.append(_against("cliff ", result.cliff, CLIFF, "cliff" in result.short, ".2f"))
    return f"{result.report.case:<46}{''.join(cells)}   {'; '.join(s for s in said if s)}"


def _against(name: str, reached: float | None, wanted: float | None, short: bool, form: str) -> str:
    """What was reached and, in brackets, what is wanted: 1.31 (1.20), with "short" behind it where it is."""
    if reached is None:
        return ""
    return f"{name}{reached:{form}}" + (f" ({wanted:{form}})" if wanted else "") + (" short" if short else "")


def _print_reasons(results: Sequence[Result]) -> None:
    """Why a backend has no figure, once for each reason."""
    seen = dict.fromkeys(
        f"  {row.backend}: {row.status}: {row.reason}" for r in results for row in r.report.rows if row.reason
    )
    for line in seen:
        print(line, flush=True)


def _small_batches(by_batch: dict[int, Result]) -> Iterator[str]:
    """Whether batches 2, 4 and 8 cost no more a call than batch 16."""
    ours = BACKENDS[OURS].name
    medians = {b: row.timing.median_s for b, r in by_batch.items() if (row := r.report.row(ours)) and row.timing}
    for batch in (2, 4, 8):
        if batch in medians and 16 in medians:
            ratio = medians[batch] / medians[16]
            yield f"  batch {batch} / batch 16: {ratio:.2f} (1.00)" + (" short" if ratio > 1 else "")


def _tails(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tails beside a busy process."""
    for batch, model, calls, allowed in TAIL:
        (case,) = deep([batch]) if model == "deep" else net([batch])
        with ExitStack() as stack:
            session = Session({OURS: BACKENDS[OURS]}, setting, stack)
            report = session.run(case, plan)
            row = report.rows[0]
            if row.timing is None:
                yield f"tail, {case.name}: {row.status}: {row.reason}", {"tail": case.name, "reason": row.reason}
                continue
            tail = extras.tail(session, case, calls)
        verdict = " short" if tail.ratio > allowed else ""
        yield (
            (
                f"tail, {case.name}, {calls:,} calls: idle p50 {duration(tail.idle_p50_s)}, p99 "
                f"{duration(tail.idle_p99_s)}; beside a busy process p50 {duration(tail.busy_p50_s)}, p99 "
                f"{duration(tail.busy_p99_s)}: {tail.ratio:.1f} times the idle p99 ({allowed}){verdict}"
            ),
            {"tail": asdict(tail), "allowed": allowed},
        )


def _optimize(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``optimize`` costs without the capture."""
    nursery = Nursery(setting.threads)
    worker = Worker(nursery, extras.OptimizeTimer)
    try:
        (case,) = deep([1])
        cost: extras.OptimizeCost = worker.ask("measure", case, limit_s=120)
    except WorkerFailed as failure:
        yield f"optimize: {failure}", {"optimize": None, "reason": str(failure)}
        return
    finally:
        worker.close()
        nursery.close()
    speed = cost.packing_bytes_per_s
    yield (
        (
            f"optimize without the capture: {duration(cost.optimize_s)} (5 ms)"
            + (" short" if cost.optimize_s > OPTIMIZE_S else "")
            + f"; packing {speed / 1e9:.2f} GB/s (1.00)"
            + (" short" if speed < PACKING_BYTES_PER_S else "")
            + f"; packed over own bytes {cost.packed_ratio:.3f} (1.1)"
            + (" short" if cost.packed_ratio > PACKED_RATIO else "")
        ),
        {"optimize": asdict(cost)},
    )


_EXTRAS: dict[str, Callable[[Setting, Plan], Iterator[tuple[str, dict[str, Any]]]]] = {
    "tail": _tails,
    "optimize": _optimize,
}


def _parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m bench perf", description=__doc__)
    known = [*targets.names(), *EXTRAS]
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
