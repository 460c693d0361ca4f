"""``report.html``: the report on one page that needs no network, in light and dark, on a phone and a wide screen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastgraph.bench.backends import BACKENDS, OURS
from fastgraph.bench.machine import machine_lines
from fastgraph.bench.measure import Plan
from fastgraph.bench.report import Report, settings
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.sides import SIDES, side_by_side
from fastgraph.bench.summary import glance, remarks, summaries
from fastgraph.bench.table import COLUMNS, MODELLED, caption, cells, modelled_cells, note, title
from fastgraph.bench.text import duration, rate
from fastgraph.extras import require

TITLE = "fastgraph bench"
HOW = (
    "Every backend runs in a process of its own, all others stopped meanwhile. Its output was first checked against "
    "float64 on real data; one over the tolerance has no speed here. Blocks of calls are interleaved in rounds: "
    "a change in the machine's speed hits all alike. Caches are warm. Figures are over single calls; p99 only from "
    "10,000 calls. A ratio is the median over the rounds, with its 95 % bootstrap interval in brackets. First calls of "
    "compilers find an empty cache; PyTorch's own precompiled headers may be there."
)
LIMIT = (
    "“x peer” is against the fastest backend that does not run our kernels. “of limit” is the share of the ceiling "
    "that binds, measured in the same rounds: compute (multiply-adds); L2, L3 or memory (reading weights, input and "
    "output once from the smallest of them that holds them); or launch (one call of the smallest operator)."
)
BESIDE = ("cpu a call", "max error", "mean error", "accuracy", "prepare", "first call", "memory")
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
    if sides := side_by_side(report.cases):
        lines = [(s.case, s.setting, s.backend, duration(s.median_s), f"{s.samples_per_s:,.0f}") for s in sides]
        sections.insert(0, "<h2>CPU and CUDA side by side</h2>" + _plain_table(SIDES, lines))
    if report.modelled:
        sections.append(_modelled(report.modelled))
    source = files("fastgraph.bench").joinpath("page.html").read_text(encoding="utf-8")
    return Template(source).substitute(
        title=TITLE,
        summary=_summary(report) + _legend(report),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        scripts="\n".join(scripts),
    )


def table_of(cases: Sequence[CaseReport]) -> str:
    """The tables of each case."""
    return "\n".join(_case_table(case) for case in cases)


def _case_table(case: CaseReport) -> str:
    """All rows of a case: what its calls took, and folded away what they cost beside."""
    return (
        f'<h3>{escape(title(case))}</h3><p class="soft">{escape(caption(case))}</p>'
        + _rows_table(case, [name for name in COLUMNS if name not in BESIDE])
        + f"<details><summary>{escape(', '.join(BESIDE))}</summary>{_rows_table(case, BESIDE)}</details>"
    )


def _rows_table(case: CaseReport, names: Sequence[str]) -> str:
    """The rows' columns of these names in which somebody has a figure, as a table that a click on a head sorts."""
    figures = [dict(zip(COLUMNS, zip(_values(row), cells(row), strict=True), strict=True)) for row in case.rows]
    shown = [name for name in names if any(one[name][1] != "-" for one in figures)]
    head = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in ("backend", *shown))
    body = "\n".join(_row(row, [one[name] for name in shown]) for row, one in zip(case.rows, figures, strict=True))
    return (
        '<div class="scroll" tabindex="0"><table class="sortable"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _summary(report: Report) -> str:
    """What was run where, and what the figures mean."""
    lines = "<br>".join(escape(line) for line in machine_lines(report.machine))
    stopped = "" if report.complete else "<p><strong>The run was stopped before its end.</strong></p>"
    absent = "".join(f"<p><strong>Not measured:</strong> {escape(one)}.</p>" for one in report.absent)
    command = f"{escape(report.date)}, {escape(str(report.plan))}: <code>{escape(report.command)}</code>"
    return f"<p>{lines}<br>{command}</p>{absent}{stopped}" + "".join(
        f'<p class="soft">{escape(said)}</p>' for said in explanations(report.plan)
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
    from fastgraph.bench import plots

    cases = [case for case in report.cases if case.setting == setting]
    where = str(setting)
    made = []
    if found := summaries(cases):
        said = "".join(f"<p>{escape(one)}</p>" for one in remarks(found))
        made.append(f"<h2>At a glance, {where}</h2>" + _plain_table(*glance(found)) + said)
        made.append(_plots([("Times as fast as eager", plots.glance(cases))], scripts))
    if report.plan.processes > 1:
        totals = [(case.case, plots.total(case)) for case in cases if any(row.timing for row in case.rows)]
        made.append(f"<h2>{report.plan.processes} processes at once, {where}</h2>" + _plots(totals, scripts))
    for model in dict.fromkeys(case.model for case in cases):
        of_model = [case for case in cases if case.model == model]
        if not any(row.timing for case in of_model for row in case.rows):
            continue
        figures = [("Speed-up over eager", plots.speedup(of_model))]
        if len(of_model) > 1:  # a line needs two points
            figures += [("Time of a call", plots.latency(of_model))]
            figures += [("Throughput", plots.throughput(of_model))] if report.plan.tight else []
        made.append(f"<h2>{escape(model)}, {where}</h2>" + _plots(figures, scripts))
    if any(case.ceilings and case.work for case in cases):
        made.append(f"<h2>Roofline, {where}</h2>" + _plots([("", plots.roofline(cases))], scripts) + _ceilings(cases))
    made.append(f"<h2>All figures, {where}</h2>" + table_of(cases))
    return made


def _plots(figures: Sequence[tuple[str, Any]], scripts: list[str]) -> str:
    """The plots' places in the page; what draws them goes to ``scripts``, behind the library."""
    from plotly.io import to_json

    made = []
    for heading, figure in figures:
        place = f"plot-{len(scripts)}"
        config = '{"responsive": true, "displaylogo": false, "displayModeBar": false}'
        content = to_json(figure).replace("</", "<\\/")
        scripts.append(
            f'<script>{{ const f = {content}; Plotly.newPlot("{place}", f.data, f.layout, {config}); }}</script>'
        )
        caption = f"<figcaption>{escape(heading)}</figcaption>" if heading else ""
        made.append(f'<figure>{caption}<div id="{place}"></div></figure>')
    return f'<div class="plots">{"".join(made)}</div>'


def _ceilings(cases: Sequence[CaseReport]) -> str:
    """The ceilings' medians in one sentence."""
    from fastgraph.bench.plots import median_ceilings

    found = median_ceilings(cases)
    units = {"fma": "FLOP/s fp32 multiply-add", "bf16": "FLOP/s bf16 dot product"}
    parts = [
        f"a call {duration(value)}" if name == "launch" else f"{rate(value)}{units.get(name, 'B/s from ' + name)}"
        for name, value in found.items()
    ]
    return f'<p class="soft">Ceilings, median over all rounds: {escape(", ".join(parts))}.</p>'


def _values(row: Row) -> tuple[float | None, ...]:
    """The plain numbers behind ``cells``, for sorting."""
    timing, to_peer, to_eager = row.timing, row.ratio_to_peer, row.ratio_to_eager
    return (
        *(timing and timing.median_s, to_peer and to_peer.value, row.samples_per_s),
        *((timing.iqr_s, timing.p90_s, timing.p99_s, timing.calls, timing.calls_per_s) if timing else [None] * 5),
        *(row.usage and row.usage.cpu_s, to_eager and to_eager.value, row.limit and row.limit.share),
        *(row.max_error, row.mean_error, row.accuracy, row.prepare_s, row.first_call_s, row.peak_bytes),
    )


def _row(row: Row, figures: Sequence[tuple[float | None, str]]) -> str:
    """One line of a table: the backend with what is to be said of it, and its figures."""
    kind = "ours" if row.backend == BACKENDS[OURS].name else "out" if row.timing is None else ""
    said = "".join(f'<td data-value="{"" if value is None else value}">{escape(text)}</td>' for value, text in figures)
    about = f"<small>{escape(note(row))}</small>"
    return f'<tr class="{kind}"><th scope="row">{escape(row.backend)}{about}</th>{said}</tr>'


def _legend(report: Report) -> str:
    """The backends' colours and symbols, once for all plots; a click hides one everywhere."""
    from fastgraph.bench import plots

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
    ) + _plain_table(MODELLED, lines)


def _plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that does not sort."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
