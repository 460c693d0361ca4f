"""``report.html``: the report on one page that needs no network, in light and dark, on a phone and a wide screen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastgraph.bench.backends import BACKENDS, OURS
from fastgraph.bench.machine import machine_lines
from fastgraph.bench.report import Report, settings
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.sides import SIDES, side_by_side
from fastgraph.bench.summary import SUMMARY, summaries, verdict
from fastgraph.bench.table import COLUMNS, MODELLED, cells, modelled_cells, note
from fastgraph.bench.text import duration, rate
from fastgraph.extras import require

TITLE = "fastgraph bench"
HOW = (
    "Every backend runs in a process of its own, all others stopped meanwhile. Its output was first checked against "
    "float64 on real data; one over the tolerance has no speed here. Blocks of calls are interleaved in rounds: "
    "a change in the machine's speed hits all alike. Caches are warm. Figures are over single calls; p99 only from "
    "10,000 calls. First calls of compilers find an empty cache; PyTorch's own precompiled headers may be there."
)
LIMIT = (
    "“of limit” is the share of the ceiling that binds, measured in the same rounds: compute (multiply-adds), memory "
    "(reading weights, input and output once from where they fit), or launch (one call of the smallest operator)."
)


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
        summary=_summary(report),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        scripts="\n".join(scripts),
    )


def table_of(cases: Sequence[CaseReport]) -> str:
    """All rows of some cases as one sortable table."""
    head = "".join(
        f'<th scope="col"{_note_class(name)}><button>{escape(name)}</button></th>'
        for name in ("case", "backend", *COLUMNS, "note")
    )
    body = "\n".join(_row(case, row) for case in cases for row in case.rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _summary(report: Report) -> str:
    """What was run where, and what the figures mean."""
    lines = "<br>".join(escape(line) for line in machine_lines(report.machine))
    stopped = "" if report.complete else "<p><strong>The run was stopped before its end.</strong></p>"
    command = f"{escape(report.date)}, mode {escape(report.plan.mode)}: <code>{escape(report.command)}</code>"
    return f'<p>{lines}<br>{command}</p>{stopped}<p class="soft">{escape(HOW)}</p><p class="soft">{escape(LIMIT)}</p>'


def _setting(report: Report, setting: Any, scripts: list[str]) -> list[str]:
    """Plots and table of one setting."""
    from fastgraph.bench import plots

    cases = [case for case in report.cases if case.setting == setting]
    where = str(setting)
    made = []
    if found := summaries(cases):
        made.append(f"<h2>At a glance, {where}</h2>" + _plots([("", plots.glance(cases))], scripts))
        made.append(_plain_table(SUMMARY, [one.cells() for one in found]) + f"<p>{escape(verdict(found))}</p>")
    for model in dict.fromkeys(case.model for case in cases):
        of_model = [case for case in cases if case.model == model]
        if not any(row.timing for case in of_model for row in case.rows):
            continue
        figures = [
            ("Time of a call", plots.latency(of_model)),
            ("Throughput", plots.throughput(of_model)),
            ("Speed-up over eager", plots.speedup(of_model)),
        ]
        made.append(f"<h2>{escape(model)}, {where}</h2>" + _plots(figures, scripts))
    if any(case.ceilings and case.work for case in cases):
        made.append(f"<h2>Roofline, {where}</h2>" + _plots([("", plots.roofline(cases))], scripts) + _ceilings(cases))
    made.append(f"<h2>All figures, {where}</h2>" + table_of(cases))
    return made


def _plots(figures: Sequence[tuple[str, Any]], scripts: list[str]) -> str:
    """The plots' places in the page; what draws them goes to ``scripts``, behind the library."""
    from plotly.io import to_json

    made = []
    for title, figure in figures:
        place = f"plot-{len(scripts)}"
        config = '{"responsive": true, "displaylogo": false, "displayModeBar": false}'
        content = to_json(figure).replace("</", "<\\/")
        scripts.append(
            f'<script>{{ const f = {content}; Plotly.newPlot("{place}", f.data, f.layout, {config}); }}</script>'
        )
        caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
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


def _row(case: CaseReport, row: Row) -> str:
    """One line of the table, with the plain numbers beside the text for sorting."""
    timing = row.timing
    values = (
        *((timing.median_s, timing.iqr_s, timing.p90_s, timing.p99_s, timing.calls) if timing else [None] * 5),
        *(row.samples_per_s, row.ratio_to_eager, row.limit.share if row.limit else None, row.max_error, row.mean_error),
        *(row.accuracy, row.prepare_s, row.first_call_s, row.peak_bytes),
    )
    kind = "ours" if row.backend == BACKENDS[OURS].name else "out" if timing is None else ""
    figures = "".join(
        f'<td data-value="{"" if value is None else value}">{escape(text)}</td>'
        for value, text in zip(values, cells(row), strict=True)
    )
    return (
        f'<tr class="{kind}"><td>{escape(case.case)}</td><td>{escape(row.backend)}</td>{figures}'
        f'<td class="note">{escape(note(row))}</td></tr>'
    )


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


def _note_class(name: str) -> str:
    return ' class="note"' if name == "note" else ""
