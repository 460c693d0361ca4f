"""The report on the terminal: one table a case, and those over all cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastgraph.bench.plan import DEFAULT, Plan
from fastgraph.bench.report import device_comparison
from fastgraph.bench.report.cells import MODELLED, caption, cells, columns, modelled_cells, note, option, title
from fastgraph.bench.report.compare import Comparison
from fastgraph.bench.report.device_comparison import DeviceLine
from fastgraph.bench.report.summary import Summary, glance, remarks
from fastgraph.bench.results import BUSY, CaseReport

WIDE = 112


def table(report: CaseReport, width: int = WIDE, plan: Plan = DEFAULT) -> Table:
    """The case as a table: one row a backend by the name that options take, those without a speed included.

    Notes are lines below.
    """
    notes = [f"{option(row.backend)}: {text}" for row in report.rows if (text := note(row))]
    shown = columns(plan, width >= WIDE)
    lines = _table(title(report), ("backend", *shown), ["backend"], "\n".join([caption(report), *notes]))
    for row in report.rows:
        figures = cells(row)
        lines.add_row(option(row.backend), *(figures[name].text for name in shown))
    return lines


def summary_table(overview: Sequence[Summary], width: int = WIDE) -> Table:
    """The report at a glance, with a sentence."""
    head, lines = glance(overview)
    wide = width >= WIDE
    shown = [name for name in head if wide or name not in ("its median", "fastgraph", "x eager", "of limit")]
    notes = remarks(overview, marked="x eager" in shown)
    summary = _table("at a glance", shown, ("case", "best peer"), "\n".join(notes))
    for line in lines:
        figures = dict(zip(head, line, strict=True))
        figures["best peer"] = option(figures["best peer"])
        figures["case"] = figures["case"].replace(
            "batch ", "batch\N{NO-BREAK SPACE}"
        )  # a name that is too long breaks there
        summary.add_row(*(figures[name] for name in shown))
    return summary


def device_table(lines: Sequence[DeviceLine]) -> Table:
    """CPU and CUDA side by side."""
    both = Table(*device_comparison.HEAD, title=device_comparison.TITLE, title_justify="left")
    for line in lines:
        both.add_row(*line)
    return both


def modelled_table(floors: Sequence[dict[str, Any]]) -> Table:
    """The floors of the roofline model."""
    about = f"model of {floors[0]['gpu']}, not measured: bytes and operations alone"
    modelled = _table(about, MODELLED, ("case", "variant", "dtype"), f"peaks: {floors[0]['source']}")
    for floor in floors:
        modelled.add_row(*modelled_cells(floor))
    return modelled


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Two reports; "noise" is the ratio up to which a difference may be that of the machine."""
    others = max((one.others for one in comparisons), default=0.0)
    busy = f"other processes took up to {others:.0%} of the processors in these runs: measure on a quiet machine"
    compared = Table(box=SIMPLE_HEAD, caption=busy if others > BUSY else None, caption_justify="left")
    for name in ("case", "backend", "after / before", "95 % interval", "noise", "verdict"):
        compared.add_column(name, overflow="fold")
    for one in comparisons:
        figures = ("-", "-", "-")
        if one.ratio is not None:
            figures = (f"{one.ratio:.2f}", f"{one.low:.2f} to {one.high:.2f}", f"{one.bound:.2f}")
        compared.add_row(one.case, one.backend, *figures, one.verdict)
    return compared


def _table(title: str, columns: Sequence[str], left: Sequence[str], caption: str) -> Table:
    """An empty table whose figures stand to the right."""
    empty = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        figure = name not in left
        empty.add_column(
            name, justify="right" if figure else "left", no_wrap=figure or name == "backend", overflow="fold"
        )
    return empty
