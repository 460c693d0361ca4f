"""A report's plots as pictures for a README, light and dark, drawn by a headless Chromium (Kaleido)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastgraph.bench.plan import Plan
from fastgraph.bench.report.report import Report
from fastgraph.bench.report.summary import timed_cases
from fastgraph.bench.results import CaseReport
from fastgraph.extras import require

LEGEND = 100  # pixels
WIDTH, SCALE = 830, 2  # pixels of GitHub's column, and of a fine screen
SCHEMES = {"light": ("#1b1f24", "#ffffff", "#d1d9e0"), "dark": ("#e6edf3", "#0d1117", "#3d444d")}  # ink, paper, grid


def draw(report: Report, out: Path) -> list[Path]:
    """Writes ``glance-light.png`` and ``glance-dark.png`` into ``out``; of several processes one for each case instead.

    Raises:
        ImportError: Plotly or Kaleido is not installed.
        RuntimeError: there is no Chromium.
        OSError: the folder cannot be written.
    """
    require("plotly", "kaleido", by="bench picture")  # Plotly's own complaint is ten lines long
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in _figures(report).items():
        for scheme, (ink, paper, grid) in SCHEMES.items():
            figure.update_layout(font_color=ink, paper_bgcolor=paper, plot_bgcolor=paper, margin_r=24)
            figure.update_xaxes(gridcolor=grid, linecolor=grid)
            figure.update_yaxes(gridcolor=grid, linecolor=grid)
            written.append(out / f"{name}-{scheme}.png")
            figure.write_image(written[-1], width=WIDTH, scale=SCALE)
    return written


def _figures(report: Report) -> dict[str, Any]:
    """The figures by the names of their files."""
    from fastgraph.bench.report import plots

    if report.plan.processes > 1:
        timed = timed_cases(report.cases)
        return {f"processes-{case.model}-{case.batch}": _titled(case, report.plan, plots.total(case)) for case in timed}
    figure = plots.glance(report.cases)
    legend = {"orientation": "h", "yanchor": "top", "y": -70 / (figure.layout.height - 90), "x": 0}
    figure.update_layout(showlegend=True, legend=legend, height=figure.layout.height + LEGEND)
    return {"glance": figure}


def _titled(case: CaseReport, plan: Plan, figure: Any) -> Any:
    """The figure with what it shows over it."""
    title = f"{case.case}: {plan.processes} processes at once, {case.setting}"
    figure.update_layout(
        title={"text": title, "x": 0.02, "font_size": 14}, margin_t=48, height=figure.layout.height + 24
    )
    return figure
