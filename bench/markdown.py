"""``report.md``: the report for a README, an issue or a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastgraph.bench.machine import machine_lines
from fastgraph.bench.report import Report
from fastgraph.bench.sides import SIDES, side_by_side
from fastgraph.bench.summary import SUMMARY, summaries, verdict
from fastgraph.bench.table import MODELLED, caption, modelled_cells, note, title
from fastgraph.bench.text import duration

HEAD = ("backend", "median", "IQR", "p90", "p99", "samples/s", "x eager", "of limit", "max error", "accuracy", "note")


def markdown(report: Report) -> str:
    """The whole report."""
    parts = ["# fastgraph bench", "  \n".join(machine_lines(report.machine))]
    parts.append(f"{report.date}, mode {report.plan.mode}: `{report.command}`")
    if not report.complete:
        parts.append("**The run was stopped before its end.**")
    if found := summaries(report.cases):
        parts += ["## At a glance", _table(SUMMARY, [one.cells() for one in found]), verdict(found)]
    for case in report.cases:
        rows = []
        for row in case.rows:
            timing = row.timing
            cells = (
                row.backend,
                duration(timing.median_s if timing else None),
                duration(timing.iqr_s if timing else None),
                duration(timing.p90_s if timing else None),
                duration(timing.p99_s if timing else None),
                f"{row.samples_per_s:,.0f}" if row.samples_per_s else "-",
                f"{row.ratio_to_eager:.2f}" if row.ratio_to_eager else "-",
                f"{row.limit.share:.0%} {row.limit.binding}" if row.limit else "-",
                "-" if row.max_error is None else f"{row.max_error:.1e}",
                "-" if row.accuracy is None else f"{row.accuracy:.2%}",
                note(row),
            )
            rows.append(cells)
        parts += [f"## {title(case)}", _table(HEAD, rows)]
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
