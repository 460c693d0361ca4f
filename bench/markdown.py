"""``report.md``: the report for a README, an issue or a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastgraph.bench.machine import machine_lines
from fastgraph.bench.report import Report
from fastgraph.bench.sides import SIDES, side_by_side
from fastgraph.bench.summary import glance, remarks, summaries
from fastgraph.bench.table import COLUMNS, MODELLED, caption, cells, columns, modelled_cells, note, title
from fastgraph.bench.text import duration

ALWAYS = ("p90", "p99", "calls", "accuracy", "note")  # whatever the mode shows beside


def markdown(report: Report) -> str:
    """The whole report."""
    parts = ["# fastgraph bench", "  \n".join(machine_lines(report.machine))]
    parts.append(f"{report.date}, {report.plan}: `{report.command}`")
    parts += [f"Not measured: {one}." for one in report.absent]
    if not report.complete:
        parts.append("**The run was stopped before its end.**")
    if found := summaries(report.cases):
        parts += ["## At a glance", _table(*glance(found)), "  \n".join(remarks(found))]
    head = ("backend", *dict.fromkeys([*columns(report.plan), *ALWAYS]))
    for case in report.cases:
        rows = []
        for row in case.rows:
            figures = dict(zip(COLUMNS, cells(row), strict=True)) | {"backend": row.backend, "note": note(row)}
            rows.append([figures[name] for name in head])
        parts += [f"## {title(case)}", _table(head, rows)]
        if text := caption(case):
            parts.append(text)
    if sides := side_by_side(report.cases):
        lines = [(s.case, s.setting, s.backend, duration(s.median_s), f"{s.samples_per_s:,.0f}") for s in sides]
        parts += ["## CPU and CUDA side by side", _table(SIDES, lines)]
    if report.modelled:
        parts += [f"## Model of {report.modelled[0]['gpu']}: not measured", _modelled(report.modelled)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _modelled(floors: Sequence[dict[str, Any]]) -> str:
    """The modelled floors."""
    rows = [modelled_cells(f) for f in floors]
    return f"{_table(MODELLED, rows)}\n\nPeaks: {floors[0]['source']}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
