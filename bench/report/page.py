"""``report.html``: the report on one page that needs no network, in light and dark, on a phone and a wide screen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastgraph.bench.ceilings.measured import CEILINGS
from fastgraph.bench.machine import machine_lines
from fastgraph.bench.plan import Plan
from fastgraph.bench.report import device_comparison
from fastgraph.bench.report.cells import MODELLED, modelled_cells
from fastgraph.bench.report.html_tables import case_tables, plain_table
from fastgraph.bench.report.report import Report, settings
from fastgraph.bench.report.summary import glance, median_ceilings, remarks, summaries, timed_cases
from fastgraph.bench.results import CaseReport
from fastgraph.extras import require

TITLE = "fastgraph bench"
HOW = (
    "Every backend runs in a process of its own, all others stopped meanwhile. Its output was first checked against "
    "float64; one over the tolerance has no speed here. Blocks of calls are interleaved in rounds: "
    "a change in the machine's speed hits all alike. Caches are warm. Figures are over single calls; p99 only from "
    "10,000 calls. A ratio is the median over the rounds, with its 95 % bootstrap interval in brackets. First calls of "
    "compilers find an empty cache; PyTorch's own precompiled headers may be there."
)
LIMIT = (
    "“x peer” is against the fastest backend that does not run our kernels. “of limit” is the share of the ceiling "
    "that binds, measured in the same rounds: compute (multiply-adds); L2, L3 or memory (reading weights, input and "
    "output once from the smallest of them that holds them); or launch (one call of the smallest operator). "
    "“fused” is the share of the model's FLOPs in fused kernels of ours."
)
RESTING = (
    "Between calls the process sleeps, as a service does that waits for its next request; “cpu a call” is the "
    "processor time of all its threads from one call to the next, those that spin for work included."
)
AT_ONCE = (
    "All processes of a backend call without rest at the same time, on the same cores, each with all threads. "
    "“calls/s” is what they do together, and what ratios compare; times are those of single calls."
)
SERVER = (
    "A query's time is that from its arrival to its answer, the wait behind earlier ones included; the moments are the "
    "same for every backend."
)

SHAPES = {
    "circle": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0Z",
    "square": "M-5-5H5V5H-5Z",
    "hourglass": "M-5-5H5L-5 5H5Z",
    "diamond": "M0-7L7 0 0 7-7 0Z",
    "cross": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "triangle-up": "M0-6L6 5H-6Z",
    "triangle-down": "M0 6L6-5H-6Z",
    "pentagon": "M0-7L7-2 4 6H-4L-7-2Z",
    "star": "M0-8L2-2H8L3 2 5 8 0 4-5 8-3 2-8-2H-2Z",
    "hexagon": "M-4-6H4L7 0 4 6H-4L-7 0Z",
    "x": "M-6-3L-3-6 0-3 3-6 6-3 3 0 6 3 3 6 0 3-3 6-6 3-3 0Z",
}
"""Plotly's symbols as paths in a square from -8 to 8."""


def page(report: Report) -> str:
    """The whole page. Needs Plotly."""
    require("plotly", by="report.html")
    from plotly.offline import get_plotlyjs

    scripts: list[str] = []
    sections = [section for setting in settings(report.cases) for section in _setting(report, setting, scripts)]
    if devices := device_comparison.device_comparison(report.cases):
        sections.insert(0, f"<h2>{device_comparison.TITLE}</h2>" + plain_table(device_comparison.HEAD, devices))
    if report.modelled:
        sections.append(_modelled(report.modelled))
    source = files("fastgraph.bench.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(source).substitute(
        title=TITLE,
        summary=_summary(report) + _legend(report),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        scripts="\n".join(scripts),
    )


def _summary(report: Report) -> str:
    """What was run where, and what the figures mean."""
    lines = "<br>".join(escape(line) for line in machine_lines(report.machine))
    stopped = "" if report.complete else "<p><strong>The run was stopped before its end.</strong></p>"
    absent = "".join(f"<p><strong>Not measured:</strong> {escape(one)}.</p>" for one in report.absent)
    command = f"{escape(report.date)}, {escape(str(report.plan))}: <code>{escape(report.command)}</code>"
    return f"<p>{lines}<br>{command}</p>{absent}{stopped}" + "".join(
        f'<p class="soft">{escape(text)}</p>' for text in explanations(report.plan)
    )


def explanations(plan: Plan) -> list[str]:
    """What the figures of this kind of run mean."""
    if plan.rate_per_s is not None:
        return [HOW, RESTING, SERVER]
    if plan.processes > 1:
        return [HOW, AT_ONCE]
    return [HOW, RESTING] if plan.pause_s else [HOW, LIMIT]


def _setting(report: Report, setting: Any, scripts: list[str]) -> list[str]:
    """Plots and table of one setting."""
    from fastgraph.bench.report import plots

    cases = [case for case in report.cases if case.setting == setting]
    where = str(setting)
    parts = []
    if overview := summaries(cases):
        sentences = "".join(f"<p>{escape(one)}</p>" for one in remarks(overview))
        parts.append(f"<h2>At a glance, {where}</h2>" + plain_table(*glance(overview)) + sentences)
        parts.append(_plots([("Times as fast as eager", plots.glance(cases))], scripts))
    if report.plan.processes > 1:
        totals = [(case.case, plots.total(case)) for case in timed_cases(cases)]
        parts.append(f"<h2>{report.plan.processes} processes at once, {where}</h2>" + _plots(totals, scripts))
    for model in dict.fromkeys(case.model for case in cases):
        of_model = [case for case in cases if case.model == model]
        if not timed_cases(of_model):
            continue
        figures = [("Speed-up over eager", plots.speedup(of_model))]
        if len(of_model) > 1:  # a line needs two points
            figures += [("Time of a call", plots.latency(of_model))]
            figures += [("Throughput", plots.throughput(of_model))] if report.plan.tight else []
        parts.append(f"<h2>{escape(model)}, {where}</h2>" + _plots(figures, scripts))
    if any(case.ceilings and case.work for case in cases):
        parts.append(f"<h2>Roofline, {where}</h2>" + _plots([("", plots.roofline(cases))], scripts) + _ceilings(cases))
    parts.append(f"<h2>All figures, {where}</h2>" + case_tables(cases))
    return parts


def _plots(figures: Sequence[tuple[str, Any]], scripts: list[str]) -> str:
    """The plots' places in the page; what draws them goes to ``scripts``, behind the library."""
    from plotly.io import to_json

    parts = []
    for heading, figure in figures:
        place = f"plot-{len(scripts)}"
        config = '{"responsive": true, "displaylogo": false, "displayModeBar": false}'
        content = to_json(figure).replace("</", "<\\/")
        scripts.append(
            f'<script>{{ const f = {content}; Plotly.newPlot("{place}", f.data, f.layout, {config}); }}</script>'
        )
        caption = f"<figcaption>{escape(heading)}</figcaption>" if heading else ""
        parts.append(f'<figure>{caption}<div id="{place}"></div></figure>')
    return f'<div class="plots">{"".join(parts)}</div>'


def _ceilings(cases: Sequence[CaseReport]) -> str:
    """The ceilings' medians in one sentence."""
    parts = [CEILINGS[name].text(value, about=True) for name, value in median_ceilings(cases).items()]
    return f'<p class="soft">Ceilings, median over all rounds: {escape(", ".join(parts))}.</p>'


def _legend(report: Report) -> str:
    """The backends' colours and symbols, once for all plots; a click hides one everywhere."""
    from fastgraph.bench.report import plots

    timed = dict.fromkeys(row.backend for case in report.cases for row in case.rows if row.timing)
    entries = []
    for name in timed:
        colour, symbol = plots.STYLE[name]
        picture = (
            f'<svg viewBox="-8 -8 16 16" width="14" height="14"><path fill="{colour}" d="{SHAPES[symbol]}"/></svg>'
        )
        entries.append(f'<button aria-pressed="true" data-name="{escape(name)}">{picture} {escape(name)}</button>')
    return f'<div class="legend">{"".join(entries)}</div>'


def _modelled(floors: Sequence[dict[str, Any]]) -> str:
    """The modelled floors, with what they are in front."""
    lines = [modelled_cells(f) for f in floors]
    return (
        f"<h2>Model of {escape(floors[0]['gpu'])}: not measured</h2>"
        '<p class="soft">Floors by a roofline model from the published peaks: operations and bytes alone, no launches. '
        f"Real times are longer. Peaks: {escape(floors[0]['source'])}.</p>"
    ) + plain_table(MODELLED, lines)
