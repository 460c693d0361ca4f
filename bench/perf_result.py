"""One case of ``python -m bench perf`` against its target, and how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor, nn

from fastgraph.bench.backends import BACKENDS, OURS, Backend, Setting
from fastgraph.bench.backends.fastgraph_direct import FastgraphDirect
from fastgraph.bench.cases import Case
from fastgraph.bench.measure import Plan
from fastgraph.bench.session import CaseReport, CeilingBlocks, Session
from fastgraph.bench.targets import CLIFF, Target
from fastgraph.bench.text import duration

CONTENDER = 1.5  # a backend slower than the fastest by more than this is timed in three rounds only


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
    short: tuple[str, ...] = ()


def against_target(session: Session, alone: Session | None, target: Target, plan: Plan) -> Result:
    """Measures one case, and its neighbour, where it has one, in the session without peers."""
    report = _run(session, target.case, target.ceiling, plan)
    share = _share(report, target.ceiling)
    ours = report.row(BACKENDS[OURS].name)
    assert ours is not None
    median_s = ours.timing.median_s if ours.timing else None
    peers = _peers(report)
    best = min(peers, key=lambda name: peers[name]) if peers else None
    fp32 = report.row(FastgraphFp32.name)
    cliff = None
    if target.neighbour is not None and alone is not None and share is not None:
        other = _share(_run(alone, target.neighbour, target.ceiling, plan), target.ceiling)
        cliff = other / share if other else None
    made = Result(
        target=target.group,
        threads=session.setting.threads,
        dtype=session.setting.dtype,
        report=report,
        best_peer=best,
        ratio=peers[best] / median_s if best and median_s else None,
        ratio_target=target.ratio,
        ceiling=target.ceiling,
        share=share,
        share_target=target.share,
        fp32_ratio=fp32.timing.median_s / median_s if fp32 and fp32.timing and median_s else None,
        fp32_ratio_target=target.fp32_ratio,
        cliff=cliff,
    )
    return replace(made, short=_short(made) if median_s else (f"{ours.status}: {ours.reason}",))


def _peers(report: CaseReport) -> dict[str, float]:
    """The medians of all that is not ours."""
    timed = {row.backend: row.timing.median_s for row in report.rows if row.timing is not None}
    return {name: median_s for name, median_s in timed.items() if not name.startswith("fastgraph")}


def _short(result: Result) -> tuple[str, ...]:
    """What is under its target, where there are both."""
    pairs = {
        "ratio": (result.ratio, result.ratio_target),
        "ceiling": (result.share, result.share_target),
        "ratio to fp32": (result.fp32_ratio, result.fp32_ratio_target),
    }
    found = [name for name, (reached, wanted) in pairs.items() if reached and wanted and reached < wanted]
    return (*found, *(["cliff"] if result.cliff and result.cliff > CLIFF else []))


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


def header(backends: dict[str, type[Backend]], setting: Setting) -> str:
    """The lines over the columns."""
    names = "".join(f"{name:>16}" for name in backends)
    return f"\n{setting.dtype}, {setting.threads} threads\n{'case':<46}{names}   best peer / ours, share of the ceiling"


def line(result: Result, backends: dict[str, type[Backend]]) -> str:
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


def small_batches(by_batch: dict[int, Result]) -> Iterator[str]:
    """Whether batches 2, 4 and 8 cost no more a call than batch 16."""
    ours = BACKENDS[OURS].name
    medians = {b: row.timing.median_s for b, r in by_batch.items() if (row := r.report.row(ours)) and row.timing}
    for batch in (2, 4, 8):
        if batch in medians and 16 in medians:
            ratio = medians[batch] / medians[16]
            yield f"  batch {batch} / batch 16: {ratio:.2f} (1.00)" + (" short" if ratio > 1 else "")
