"""The report on the terminal: one table a case."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastgraph.bench.backends import BACKENDS
from fastgraph.bench.measure import DEFAULT, Plan
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.summary import Summary, glance, remarks
from fastgraph.bench.text import duration, rate, size

BUSY = 0.05  # of the processors' time: others that take more are noted
NOISY = 0.1  # of the median: an IQR beyond it is noted
COLUMNS = (
    *("median", "x peer", "samples/s", "IQR", "p90", "p99", "calls", "calls/s", "cpu a call", "x eager", "of limit"),
    *("max error", "mean error", "accuracy", "prepare", "first call", "memory"),
)
MODELLED = ("case", "variant", "dtype", "kernels", "FLOP", "bytes", "floor")

# What fits a terminal of 120 columns, and one of 80; the files have all.
SHOWN = ("median", "IQR", "p99", "samples/s", "x peer", "x eager", "of limit", "max error")
NARROW = ("median", "samples/s", "x peer", "of limit")
SHOWN_AT_ONCE = ("median", "p99", "calls/s", "samples/s", "x peer", "x eager", "max error")
NARROW_AT_ONCE = ("median", "calls/s", "x peer")
SHOWN_RESTING = ("median", "p90", "p99", "cpu a call", "x peer", "x eager", "max error")
NARROW_RESTING = ("median", "p99", "cpu a call", "x peer")
WIDE = 112
OPTIONS = {backend.name: option for option, backend in BACKENDS.items()}


def columns(plan: Plan, wide: bool = True) -> tuple[str, ...]:
    """What counts, by how calls come: in a loop, from several processes, or with rest in between."""
    if plan.processes > 1:
        return SHOWN_AT_ONCE if wide else NARROW_AT_ONCE
    if plan.tight:
        return SHOWN if wide else NARROW
    return SHOWN_RESTING if wide else NARROW_RESTING


def table(report: CaseReport, width: int = WIDE, plan: Plan = DEFAULT) -> Table:
    """The case as a table: one row a backend by the name that options take, those without a speed included.

    Notes are lines below.
    """
    notes = [f"{option(row.backend)}: {said}" for row in report.rows if (said := note(row))]
    shown = columns(plan, width >= WIDE)
    made = _table(title(report), ("backend", *shown), ["backend"], "\n".join([caption(report), *notes]))
    for row in report.rows:
        figures = dict(zip(COLUMNS, cells(row), strict=True))
        made.add_row(option(row.backend), *(figures[name] for name in shown))
    return made


def summary_table(found: Sequence[Summary], width: int = WIDE) -> Table:
    """The report at a glance, with a sentence."""
    head, lines = glance(found)
    wide = width >= WIDE
    shown = [name for name in head if wide or name not in ("its median", "fastgraph", "x eager", "of limit")]
    notes = remarks(found)[: None if wide else 2]  # the mark is at "x eager"
    made = _table("at a glance", shown, ("case", "best peer"), "\n".join(notes))
    for line in lines:
        figures = dict(zip(head, line, strict=True))
        figures["best peer"] = option(figures["best peer"])
        made.add_row(*(figures[name] for name in shown))
    return made


def option(backend: str) -> str:
    """The short name of a backend, as ``--backends`` takes it."""
    return OPTIONS.get(backend, backend)


def _table(title: str, columns: Sequence[str], left: Sequence[str], caption: str) -> Table:
    """An empty table whose figures stand to the right."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        figure = name not in left
        made.add_column(
            name, justify="right" if figure else "left", no_wrap=figure or name == "backend", overflow="fold"
        )
    return made


def title(report: CaseReport) -> str:
    """What was measured, and how far from float64 a backend may be."""
    return (
        f"{report.case}: {report.setting}, input "
        f"{list(report.input_shape)}; error allowed {report.tolerance:.1e} (eager's own {report.eager_error:.1e})"
    )


def caption(report: CaseReport) -> str:
    """What a call has to do, and the ceilings measured beside it."""
    ceilings = [
        f"{name} {duration(median(values)) if name == 'launch' else rate(median(values))}"
        + ("" if name == "launch" else "FLOP/s" if name in ("fma", "bf16") else "B/s")
        for name, values in report.ceilings.items()
    ]
    did = f"a call: {rate(report.work.flops)}FLOP, {size(report.work.bytes)} at least" if report.work else ""
    busy = (report.others or 0) > BUSY
    others = f"doubtful: other processes took {report.others:.0%} of the processors" if busy else ""
    return "; ".join(part for part in (did, "ceilings: " + ", ".join(ceilings) if ceilings else "", others) if part)


def modelled_table(floors: Sequence[dict[str, Any]]) -> Table:
    """The floors of the roofline model."""
    said = f"model of {floors[0]['gpu']}, not measured: bytes and operations alone"
    made = _table(said, MODELLED, ("case", "variant", "dtype"), f"peaks: {floors[0]['source']}")
    for f in floors:
        made.add_row(*modelled_cells(f))
    return made


def modelled_cells(floor: dict[str, Any]) -> tuple[str, ...]:
    """A modelled floor's figures in the order of ``MODELLED``."""
    figures = (str(floor["kernels"]), rate(floor["flops"]), size(floor["bytes"]), duration(floor["floor_s"]))
    return (floor["case"], floor["variant"], floor["dtype"], *figures)


def cells(row: Row) -> list[str]:
    """The row's figures in the order of ``COLUMNS``; "-" where there is none."""
    timing = row.timing
    return [
        duration(timing.median_s if timing else None),
        str(row.ratio_to_peer or "-"),
        f"{row.samples_per_s:,.0f}" if row.samples_per_s else "-",
        duration(timing.iqr_s if timing else None),
        duration(timing.p90_s if timing else None),
        duration(timing.p99_s if timing else None),
        f"{timing.calls:,}" if timing else "-",
        f"{timing.calls_per_s:,.0f}" if timing and timing.round_calls_per_s else "-",
        duration(row.usage.cpu_s if row.usage else None),
        str(row.ratio_to_eager or "-"),
        str(row.limit or "-"),
        "-" if row.max_error is None else f"{row.max_error:.1e}",
        "-" if row.mean_error is None else f"{row.mean_error:.1e}",
        "-" if row.accuracy is None else f"{row.accuracy:.2%}",
        duration(row.prepare_s),
        duration(row.first_call_s),
        size(row.peak_bytes),
    ]


def note(row: Row) -> str:
    """Where it ran, why it has no speed, and what is doubtful about it."""
    said = [text for text in (row.where, row.reason and f"{row.status}: {row.reason}") if text]
    if row.warmed_up is False:
        said.append("not stable after warm-up")
    if row.timing and row.timing.iqr_s > NOISY * row.timing.median_s:
        share = row.timing.iqr_s / row.timing.median_s
        said.append(f"IQR is {share:.0%} of the median" if share < 2 else f"IQR is {share:.0f} times the median")
    if row.usage and row.usage.between_s is not None:
        said.append(f"{duration(row.usage.between_s)} between calls")
    if row.usage and row.usage.faults:
        used = row.usage
        said.append(
            f"{used.page_faults:,.0f} page faults a call, {used.kernel:.0%} of its processor time in the kernel"
        )
    return "; ".join(said)
