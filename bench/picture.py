"""The report's plot at a glance as pictures for a README, light and dark, drawn by a headless Chromium (Kaleido)."""

from __future__ import annotations

from pathlib import Path

from fastgraph.bench.report import Report
from fastgraph.extras import require

WIDTH, SCALE = 830, 2  # pixels of GitHub's column, and of a fine screen
SCHEMES = {"light": ("#1b1f24", "#ffffff", "#d1d9e0"), "dark": ("#e6edf3", "#0d1117", "#3d444d")}  # ink, paper, grid


def draw(report: Report, out: Path) -> list[Path]:
    """Writes ``glance-light.png`` and ``glance-dark.png`` into ``out``.

    Raises:
        ImportError: Plotly or Kaleido is not installed.
        RuntimeError: there is no Chromium.
        OSError: the folder cannot be written.
    """
    require("plotly", "kaleido", by="bench picture")  # Plotly's own complaint is ten lines long
    from fastgraph.bench import plots

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for scheme, (ink, paper, grid) in SCHEMES.items():
        figure = plots.glance(report.cases)
        figure.update_layout(font_color=ink, paper_bgcolor=paper, plot_bgcolor=paper, margin_r=24)
        figure.update_xaxes(gridcolor=grid, linecolor=grid)
        figure.update_yaxes(gridcolor=grid, linecolor=grid)
        written.append(out / f"glance-{scheme}.png")
        figure.write_image(written[-1], width=WIDTH, scale=SCALE)
    return written
