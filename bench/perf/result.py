"""One case of ``python -m bench perf`` against its target, and how it is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor, nn

from fastgraph.bench.backends import BASELINE_NAME, OURS_NAME, Backend, Setting
from fastgraph.bench.backends.fastgraph_direct import FastgraphDirect
from fastgraph.bench.cases import Case
from fastgraph.bench.ceilings.measured import COMPUTE, CeilingBlocks, compute_ceiling
from fastgraph.bench.perf.target import CLIFF, Target
from fastgraph.bench.plan import Plan
from fastgraph.bench.results import CaseReport
from fastgraph.bench.session import Session
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
    """One case against its target. ``share`` is of the ceiling ``target.ceiling``, 0..1, without the ``operator_s``
    that the ``operator`` in front takes by itself; ``short`` names what is under its target."""

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
    operator: str | None = None
    operator_s: float | None = None
    short: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sessions:
    """The session of all backends; those of ours alone and of eager alone where a target needs them."""

    all: Session
    ours: Session | None = None
    eager: Session | None = None


def against_target(sessions: Sessions, target: Target, plan: Plan) -> Result:
    """Measures one case; the operator in front and the same with whole tiles, where it has them, by themselves."""
    report = _run(sessions.all, target.case, target.ceiling, plan)
    operator_s = None
    if target.operator is not None and sessions.eager is not None:
        operator_s = _median(sessions.eager.run(target.operator, plan), BASELINE_NAME)
    share = _share(report, target.ceiling, operator_s or 0.0)
    cliff = None
    if target.whole_tiles is not None and sessions.ours is not None and share is not None:
        whole = _share(_run(sessions.ours, target.whole_tiles, target.ceiling, plan), target.ceiling)
        cliff = whole / share if whole else None
    ours = report.row(OURS_NAME)
    assert ours is not None
    median_s, fp32_s = _median(report, OURS_NAME), _median(report, FastgraphFp32.name)
    peers = _peers(report, sessions.all.backends.values())
    best = min(peers, key=lambda name: peers[name]) if peers else None
    result = Result(
        target=target.group,
        threads=sessions.all.setting.threads,
        dtype=sessions.all.setting.dtype,
        report=report,
        best_peer=best,
        ratio=peers[best] / median_s if best and median_s else None,
        ratio_target=target.ratio,
        ceiling=target.ceiling,
        share=share,
        share_target=target.share,
        fp32_ratio=fp32_s / median_s if fp32_s and median_s else None,
        fp32_ratio_target=target.fp32_ratio,
        cliff=cliff,
        operator=target.operator.name if target.operator else None,
        operator_s=operator_s,
    )
    return replace(result, short=_short(result) if median_s else (f"{ours.status}: {ours.reason}",))


def _peers(report: CaseReport, backends: Collection[type[Backend]]) -> dict[str, float]:
    """The medians of all that does not run our kernels."""
    medians = {one.name: _median(report, one.name) for one in backends if not one.is_ours}
    return {name: median_s for name, median_s in medians.items() if median_s is not None}


def _median(report: CaseReport, backend: str) -> float | None:
    """The median of a backend by its name in the report; None where it has no speed."""
    row = report.row(backend)
    return row.timing.median_s if row and row.timing else None


def _short(result: Result) -> tuple[str, ...]:
    """What is under its target, where there are both."""
    pairs = {
        "ratio": (result.ratio, result.ratio_target),
        "ceiling": (result.share, result.share_target),
        "ratio to fp32": (result.fp32_ratio, result.fp32_ratio_target),
    }
    names = [name for name, (reached, wanted) in pairs.items() if reached and wanted and reached < wanted]
    return (*names, *(["cliff"] if result.cliff and result.cliff > CLIFF else []))


def _run(session: Session, case: Case, ceiling: str, plan: Plan) -> CaseReport:
    """The case with its ceilings."""
    names = ["weights"] if ceiling == "weights" else ["fma", COMPUTE[session.setting.dtype]]
    return session.run(case, plan, CeilingBlocks(tuple(dict.fromkeys(names))), CONTENDER)


def _share(report: CaseReport, ceiling: str, operator_s: float = 0.0) -> float | None:
    """Share of the ceiling, 0..1: round by round, since the machine's speed moves, then the median."""
    ours = report.row(OURS_NAME)
    name = compute_ceiling(report.ceilings) if ceiling == "fma" else ceiling
    if ours is None or ours.timing is None or report.work is None or name not in report.ceilings:
        return None
    if ours.timing.median_s <= operator_s:
        return None  # the operator takes all of it: nothing can be told
    amount = report.work.weight_bytes if ceiling == "weights" else report.work.flops
    pairs = zip(ours.timing.round_medians_s, report.ceilings[name], strict=False)  # slow ones sit out later rounds
    return median(amount / (seconds - operator_s) / rate for seconds, rate in pairs if seconds > operator_s)


def short_mark(is_short: bool) -> str:
    """What stands behind a figure that is under its target."""
    return " short" if is_short else ""


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
    parts = [
        _against("", result.ratio, result.ratio_target, "ratio" in result.short, ".2f"),
        _against(f"{result.ceiling} ", result.share, result.share_target, "ceiling" in result.short, ".0%"),
    ]
    if result.fp32_ratio_target or result.fp32_ratio:
        short = "ratio to fp32" in result.short
        parts.append(_against("to fp32 ", result.fp32_ratio, result.fp32_ratio_target, short, ".2f"))
    if result.cliff is not None:
        parts.append(_against("cliff ", result.cliff, CLIFF, "cliff" in result.short, ".2f"))
    return f"{result.report.case:<46}{''.join(cells)}   {'; '.join(s for s in parts if s)}"


def _against(name: str, reached: float | None, wanted: float | None, short: bool, form: str) -> str:
    """What was reached and, in brackets, what is wanted: 1.31 (1.20), with "short" behind it where it is."""
    if reached is None:
        return ""
    return f"{name}{reached:{form}}" + (f" ({wanted:{form}})" if wanted else "") + short_mark(short)


def small_batches(by_batch: dict[int, Result]) -> Iterator[str]:
    """Whether batches 2, 4 and 8 cost no more a call than batch 16."""
    medians = {b: median_s for b, r in by_batch.items() if (median_s := _median(r.report, OURS_NAME))}
    for batch in (2, 4, 8):
        if batch in medians and 16 in medians:
            ratio = medians[batch] / medians[16]
            yield f"  batch {batch} / batch 16: {ratio:.2f} (1.00){short_mark(ratio > 1)}"
