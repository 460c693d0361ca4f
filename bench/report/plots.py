"""The report's plots, as Plotly figures whose colours the page sets: latency, throughput, speed-up, roofline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from fastgraph.extras import require

require("plotly", by="fastgraph.bench.report.plots")

import plotly.graph_objects as go

from fastgraph.bench.backends import BACKENDS, BASELINE_NAME, OURS_NAME
from fastgraph.bench.ceilings.measured import compute_ceiling
from fastgraph.bench.report.cells import option
from fastgraph.bench.report.summary import median_ceilings, summaries, timed_cases
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.text import duration, rate

# Distinct on white and on black, and for colour-blind readers (Okabe and Ito 2008); ours stands out.
COLOURS = (
    "#8b949e", "#0072b2", "#5c6bc0", "#56b4e9", "#009e73", "#cc79a7",
    "#b07aa1", "#e69f00", "#d55e00", "#b8860b", "#7f7f00",
)  # fmt: skip
SYMBOLS = (
    "circle", "square", "hourglass", "diamond", "cross", "triangle-up",
    "triangle-down", "pentagon", "star", "hexagon", "x",
)  # fmt: skip
STYLE = {name.name: (COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]) for i, name in enumerate(BACKENDS.values())}
HEIGHT = 420
DASHES = {"L2": "dot", "L3": "dash", "memory": "solid"}


def latency(cases: Sequence[CaseReport]) -> go.Figure:
    """Median time of a call against the batch, both axes logarithmic; one line a backend."""
    return _against_batch(cases, "time of a call", lambda row: row.timing.median_s if row.timing else None, duration)


def throughput(cases: Sequence[CaseReport]) -> go.Figure:
    """Samples a second against the batch, both axes logarithmic; one line a backend."""
    return _against_batch(cases, "samples a second", lambda row: row.samples_per_s, rate)


def glance(cases: Sequence[CaseReport]) -> go.Figure:
    """How many times as fast as eager, logarithmic: a line for each case, a symbol for each backend."""
    figure = go.Figure()
    labels = {
        summary.label.replace(", batch", ",<br>batch"): case
        for summary, case in zip(summaries(cases), timed_cases(cases), strict=True)
    }
    for name in _backends(cases):
        rows = [(label, case.row(name)) for label, case in labels.items()]
        points = [(label, row.ratio_to_eager.value) for label, row in rows if row and row.ratio_to_eager]
        colour, symbol = STYLE[name]
        figure.add_scatter(
            x=[ratio for _, ratio in points],
            y=[label for label, _ in points],
            text=[f"{ratio:.2f}" for _, ratio in points],
            mode="markers", name=name,
            hovertemplate="%{y}, " + name + ": %{text} times as fast as eager<extra></extra>",
            marker={"symbol": symbol, "color": colour, "size": 14 if name == OURS_NAME else 9},
        )  # fmt: skip
    figure.add_vline(x=1, line_dash="dash", line_color="#8b949e")
    _lay_out(figure, "x eager", "")
    figure.update_xaxes(type="log", **_steps([x for trace in figure.data for x in trace.x]))
    figure.update_yaxes(autorange="reversed", showline=False, gridcolor="#d1d9e0")
    figure.update_layout(height=90 + 44 * len(labels))
    return figure


def speedup(cases: Sequence[CaseReport]) -> go.Figure:
    """How many times as fast as eager, logarithmic, a group of bars for each batch.

    Bars begin at eager's own line, to the right faster, to the left slower; the figures stand at their other ends.
    """
    figure = go.Figure()
    labels = [f"batch {case.batch}" for case in cases]
    ratios: list[float] = []
    for name in _backends(cases):
        if name == BASELINE_NAME:
            continue
        rows = [case.row(name) for case in cases]
        values = [row.ratio_to_eager.value if row and row.ratio_to_eager else None for row in rows]
        ratios += [value for value in values if value]
        figure.add_bar(
            y=labels, x=[value and value - 1 for value in values], base=1, name=name, orientation="h",
            text=[f"{value:.2f}" if value else "" for value in values], textposition="outside", textfont_size=11,
            marker_color=STYLE[name][0], constraintext="none", cliponaxis=False, customdata=values,
            hovertemplate="%{y}, " + name + ": %{customdata:.2f} times as fast as eager<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=1, line_color="#8b949e")
    _lay_out(figure, "times as fast as eager", "")
    low, high = min([1.0, *ratios]), max([1.0, *ratios])
    room = 0.16 * math.log10(high / low) + 0.04  # for the figures at both ends
    figure.update_xaxes(
        type="log", range=[math.log10(low) - (room if low < 1 else 0.02), math.log10(high) + room], **_steps(ratios)
    )
    bars = len(figure.data) * len(cases)
    figure.update_layout(barmode="group", bargap=0.15, height=110 + 20 * bars)
    figure.update_yaxes(autorange="reversed")
    return figure


def total(case: CaseReport) -> go.Figure:
    """Calls a second of all processes together, a bar for each backend."""
    rows = [row for row in case.rows if row.timing]
    names = [option(row.backend) for row in rows]
    rates = [row.timing.calls_per_s for row in rows if row.timing]
    figure = go.Figure()
    figure.add_bar(
        y=names, x=rates, orientation="h", marker_color=[STYLE[row.backend][0] for row in rows],
        text=[f"{value:,.0f}" for value in rates], textposition="outside", cliponaxis=False,
        hovertemplate="%{y}: %{text} calls a second<extra></extra>",
    )  # fmt: skip
    _lay_out(figure, "calls a second, all processes together", "")
    figure.update_xaxes(range=[0, 1.18 * max(rates, default=1.0)], nticks=5)
    figure.update_yaxes(autorange="reversed", ticksuffix=" ")
    figure.update_layout(height=90 + 30 * len(rows))
    return figure


def roofline(cases: Sequence[CaseReport]) -> go.Figure:
    """Every case by its operations a byte and a second, under the roofs measured in the same run."""
    figure = go.Figure()
    intensities = [case.work.flops / case.work.bytes for case in cases if case.work]
    low, high = min(intensities) / 4, max(intensities) * 4
    ceilings = median_ceilings(cases)
    compute = compute_ceiling(ceilings)
    for name in DASHES:
        if name in ceilings and compute in ceilings:
            ridge = min(max(ceilings[compute] / ceilings[name], low), high)
            xs = [low, ridge, high]
            ys = [min(ceilings[compute], x * ceilings[name]) / 1e9 for x in xs]
            label = f"{compute} {ceilings[compute] / 1e9:.0f} GFLOP/s, {name} {ceilings[name] / 1e9:.0f} GB/s"
            figure.add_scatter(
                x=xs, y=ys, mode="lines+text", name=label, line={"color": "#8b949e", "dash": DASHES[name]},
                text=[name, "", ""], textposition="top left" if name == "L2" else "bottom right",
            )  # fmt: skip
    if compute in ceilings:
        roof = ceilings[compute] / 1e9
        figure.add_scatter(
            x=[high], y=[roof], mode="text", text=[f"{compute} {roof:.0f} GFLOP/s"], textposition="top left",
            hoverinfo="skip",
        )  # fmt: skip
    for name in _backends(cases):
        points = [(c.case, c.work, row.timing) for c in cases if c.work and (row := c.row(name)) and row.timing]
        figure.add_scatter(
            x=[work.flops / work.bytes for _, work, _ in points],
            y=[work.flops / timing.median_s / 1e9 for _, work, timing in points],
            text=[f"{case}, {name}: {duration(timing.median_s)}" for case, _, timing in points],
            mode="markers", name=name, hovertemplate="%{text}<br>%{y:.3g} GFLOP/s<extra></extra>",
            marker={"size": 11 if name == OURS_NAME else 8, "color": STYLE[name][0], "symbol": STYLE[name][1]},
        )  # fmt: skip
    _lay_out(figure, "operations a byte", "GFLOP/s")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def _against_batch(
    cases: Sequence[CaseReport],
    title: str,
    value: Callable[[Row], float | None],
    text: Callable[[float], str],
) -> go.Figure:
    """One line a backend over the batch sizes; ``text`` writes its values."""
    figure = go.Figure()
    values: list[float] = []
    ordered = sorted(cases, key=lambda case: case.batch)
    for name in _backends(cases):
        values_by_batch = [(case.batch, value(row)) for case in ordered if (row := case.row(name)) is not None]
        points = [(batch, y) for batch, y in values_by_batch if y is not None]
        values += [y for _, y in points]
        colour, symbol = STYLE[name]
        figure.add_scatter(
            x=[batch for batch, _ in points],
            y=[y for _, y in points],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 3 if name == OURS_NAME else 1.5},
            marker={"symbol": symbol, "size": 9},
            text=[text(y) for _, y in points],
            hovertemplate=f"{name}, batch %{{x}}: %{{text}}<extra></extra>",
        )
    _lay_out(figure, "batch", title)
    batches = sorted({case.batch for case in cases})
    figure.update_xaxes(type="log", tickvals=batches, ticktext=[str(batch) for batch in batches])
    ticks = log_ticks([*(y for trace in figure.data for y in trace.y)])
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[text(tick).replace(".0 ", " ") for tick in ticks])
    return figure


def log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around ``values`` for a logarithmic axis: 1, 2, 5, 10, .. or powers of ten over a long range."""
    if not values:
        return []
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]


def _backends(cases: Sequence[CaseReport]) -> Iterator[str]:
    """Names of the backends that have a speed in one of the cases at least, in the report's order."""
    rows: list[Row] = [row for case in cases for row in case.rows if row.timing]
    return iter(dict.fromkeys(row.backend for row in rows))


def _steps(values: Sequence[float]) -> dict[str, list[float] | list[str]]:
    """1, 3, 10, .. on a logarithmic axis: few enough for a phone; more where all ``values`` are near 1."""
    steps = (1, 3) if max([1.0, *values]) / min([1.0, *values]) > 10 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 5) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _lay_out(figure: go.Figure, x: str, y: str) -> None:
    """What all plots share; the page has one legend for all of them."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=HEIGHT,
        margin={"l": 10, "r": 10, "t": 24, "b": 10},
        font={"family": "system-ui, sans-serif", "size": 12},
        showlegend=False,
    )
    figure.update_xaxes(title=x, title_standoff=6, tickangle=0, automargin=True, showline=True)
    figure.update_yaxes(title=y, automargin=True, showline=True)
