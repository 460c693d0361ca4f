"""``report.md``: the report for a README, an issue or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from fastgraph.bench.machine import machine_lines
from fastgraph.bench.report import device_comparison
from fastgraph.bench.report.cells import MODELLED, caption, cells, columns, modelled_cells, note, title
from fastgraph.bench.report.report import Report
from fastgraph.bench.report.summary import glance, remarks, summaries

ALWAYS = ("IQR", "p90", "p99", "calls", "accuracy")  # whatever the mode shows beside


def markdown(report: Report) -> str:
    """The whole report."""
    parts = ["# fastgraph bench", "  \n".join(machine_lines(report.machine))]
    parts.append(f"{report.date}, {report.plan}: `{report.command}`")
    parts += [f"Not measured: {one}." for one in report.absent]
    if not report.complete:
        parts.append("**The run was stopped before its end.**")
    if overview := summaries(report.cases):
        parts += ["## At a glance", _table(*glance(overview)), "  \n".join(remarks(overview))]
    names = tuple(dict.fromkeys([*columns(report.plan), *ALWAYS]))
    for case in report.cases:
        rows = [(row, cells(row)) for row in case.rows]
        lines = [[row.backend, *(figures[name].text for name in names), note(row)] for row, figures in rows]
        parts += [f"## {title(case)}", _table(("backend", *names, "note"), lines), caption(case)]
    if devices := device_comparison.device_comparison(report.cases):
        parts += [f"## {device_comparison.TITLE}", _table(device_comparison.HEAD, devices)]
    if report.modelled:
        gpu, source = report.modelled[0]["gpu"], report.modelled[0]["source"]
        lines = [list(modelled_cells(floor)) for floor in report.modelled]
        parts += [f"## Model of {gpu}: not measured", _table(MODELLED, lines), f"Peaks: {source}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
