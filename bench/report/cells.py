"""A row and a case in words and figures, written once for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from fastgraph.bench.backends import OPTIONS
from fastgraph.bench.ceilings.measured import CEILINGS
from fastgraph.bench.plan import Plan
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.results import BUSY, CaseReport, Row
from fastgraph.bench.text import duration, rate, size

NOISY = 0.1  # of the median: an IQR beyond it is noted
MODELLED = ("case", "variant", "dtype", "kernels", "FLOP", "bytes", "floor")
# What fits a terminal of 120 columns, and one of 80; the files have all.
SHOWN = ("median", "p99", "samples/s", "x peer", "x eager", "of limit", "fused", "max error")
NARROW = ("median", "samples/s", "x peer", "of limit")
SHOWN_AT_ONCE = ("median", "p99", "calls/s", "samples/s", "x peer", "x eager", "max error")
NARROW_AT_ONCE = ("median", "calls/s", "x peer")
SHOWN_RESTING = ("median", "p90", "p99", "cpu a call", "x peer", "x eager", "max error")
NARROW_RESTING = ("median", "p99", "cpu a call", "x peer")


@dataclass(frozen=True)
class Cell:
    """A figure as it is written, "-" where there is none, and the number that it is sorted by."""

    text: str
    value: float | None = None


def cells(row: Row) -> dict[str, Cell]:
    """The row's figures by the names of their columns, always all of them and in this order."""
    timing, usage, limit = row.timing, row.usage, row.limit
    return {
        "median": _cell(timing.median_s if timing else None, duration),
        "x peer": _ratio(row.ratio_to_peer),
        "samples/s": _cell(row.samples_per_s, _whole),
        "IQR": _cell(timing.iqr_s if timing else None, duration),
        "p90": _cell(timing.p90_s if timing else None, duration),
        "p99": _cell(timing.p99_s if timing else None, duration),
        "calls": _cell(timing.calls if timing else None, _whole),
        "calls/s": _cell(timing.calls_per_s if timing and timing.round_calls_per_s else None, _whole),
        "cpu a call": _cell(usage.cpu_s if usage else None, duration),
        "x eager": _ratio(row.ratio_to_eager),
        "of limit": Cell(str(limit), limit.share) if limit else Cell("-"),
        "fused": _cell(row.fused, "{:.0%}".format),
        "max error": _cell(row.max_error, "{:.1e}".format),
        "mean error": _cell(row.mean_error, "{:.1e}".format),
        "accuracy": _cell(row.accuracy, "{:.2%}".format),
        "prepare": _cell(row.prepare_s, duration),
        "first call": _cell(row.first_call_s, duration),
        "memory": _cell(row.peak_bytes, size),
    }


def columns(plan: Plan, wide: bool = True) -> tuple[str, ...]:
    """What counts, by how calls come: in a loop, from several processes, or with rest in between."""
    if plan.processes > 1:
        return SHOWN_AT_ONCE if wide else NARROW_AT_ONCE
    if plan.tight:
        return SHOWN if wide else NARROW
    return SHOWN_RESTING if wide else NARROW_RESTING


def option(backend: str) -> str:
    """The short name of a backend, as ``--backends`` takes it."""
    return OPTIONS.get(backend, backend)


def note(row: Row) -> str:
    """Where it ran, why it has no speed, and what is doubtful about it."""
    parts = [text for text in (row.where, row.reason and f"{row.status}: {row.reason}") if text]
    if row.warmed_up is False:
        parts.append("not stable after warm-up")
    if row.timing and row.timing.iqr_s > NOISY * row.timing.median_s:
        share = row.timing.iqr_s / row.timing.median_s
        parts.append(f"IQR is {share:.0%} of the median" if share < 2 else f"IQR is {share:.0f} times the median")
    if row.usage and row.usage.between_s is not None:
        parts.append(f"{duration(row.usage.between_s)} between calls")
    if row.usage and row.usage.faults:
        usage = row.usage
        parts.append(
            f"{usage.page_faults:,.0f} page faults a call, {usage.kernel:.0%} of its processor time in the kernel"
        )
    return "; ".join(parts)


def title(case: CaseReport) -> str:
    """What was measured, and how far from float64 a backend may be."""
    return (
        f"{case.case}: {case.setting}, input "
        f"{list(case.input_shape)}; error allowed {case.tolerance:.1e} (eager's own {case.eager_error:.1e})"
    )


def caption(case: CaseReport) -> str:
    """What a call has to do, and the ceilings measured beside it."""
    ceilings = [f"{name} {CEILINGS[name].text(median(values))}" for name, values in case.ceilings.items()]
    work = f"a call: {rate(case.work.flops)}FLOP, {size(case.work.bytes)} at least" if case.work else ""
    busy = (case.others or 0) > BUSY
    others = f"doubtful: other processes took {case.others:.0%} of the processors" if busy else ""
    return "; ".join(part for part in (work, "ceilings: " + ", ".join(ceilings) if ceilings else "", others) if part)


def modelled_cells(floor: dict[str, Any]) -> tuple[str, ...]:
    """A modelled floor's figures in the order of ``MODELLED``."""
    figures = (str(floor["kernels"]), rate(floor["flops"]), size(floor["bytes"]), duration(floor["floor_s"]))
    return (floor["case"], floor["variant"], floor["dtype"], *figures)


def _cell(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell("-") if value is None else Cell(write(value), value)


def _ratio(ratio: Ratio | None) -> Cell:
    return Cell(str(ratio), ratio.value) if ratio else Cell("-")


def _whole(count: float) -> str:
    return f"{count:,.0f}"


COLUMNS = tuple(cells(Row("", "")))
"""The names of all columns."""
