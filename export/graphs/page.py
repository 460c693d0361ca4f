"""One self-contained page: the graphs side by side, zoom, figures, light and dark. No network, no library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from itertools import accumulate, groupby

from fastgraph.export.graphs import text
from fastgraph.export.graphs.nodes import Graph, Node, Picture

Piece = tuple[int, int, Node, bool]
"""First row, row behind the last, the node, whether it is where the node begins."""
Band = tuple[int, int, list[Piece]]
"""First row, row behind the last, what shares the cell."""

ROW_EM, CARD_EM, AGAIN_EM, GAP_EM = 6.4, 4.8, 2.0, 1.6


def to_html(title: str, pictures: Sequence[Picture], extra: str = "") -> str:
    """The page. ``extra`` is HTML that comes behind the pictures."""
    read = lambda name: files("fastgraph.export.graphs").joinpath(name).read_text(encoding="utf-8")  # noqa: E731
    body = "\n".join(_section(index, picture) for index, picture in enumerate(pictures))
    links = "".join(f'<a href="#picture-{i}">{escape(picture.name)}</a>' for i, picture in enumerate(pictures))
    parts = {"title": escape(title), "style": read("page.css"), "script": read("page.js"), "links": links}
    page = read("page.html")
    for key, value in {**parts, "body": body, "extra": extra}.items():
        page = page.replace("{{" + key + "}}", value)
    return page


def _section(index: int, picture: Picture) -> str:
    """One picture: its notes, the choice of column for narrow screens, the columns, and the figures as a table."""
    rows = {node.name: row for row, node in enumerate(picture.eager.nodes)}
    choices = "".join(
        f'<input type="radio" name="column-{index}" id="column-{index}-{i}" class="choose-{i}"{" checked" * (i == 0)}>'
        f'<label for="column-{index}-{i}">{escape(graph.title)}</label>'
        for i, graph in enumerate(picture.graphs)
    )
    heights = _heights(picture, rows)
    columns = "".join(_column(index, i, picture, rows, heights) for i in range(len(picture.graphs)))
    template = " ".join(f"{height:.2f}em" for height in heights)
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in picture.notes)
    return f"""<section id="picture-{index}" aria-label="{escape(picture.name)}">
<h2>{escape(picture.name)}</h2>{notes}
<div class=columns>{choices}
<div class=scroll tabindex=0 role=group aria-label="graphs of {escape(picture.name)}">
<div class=graphs style="--rows:{template}">{columns}</div></div></div>
{_table(picture)}
</section>"""


def _column(section: int, number: int, picture: Picture, rows: dict[str, int], heights: list[float]) -> str:
    graph = picture.graphs[number]
    bands = _bands(_pieces(graph, rows))
    tops = [0.0, *accumulate(heights)]
    below = [tops[first] for first, *_ in bands[1:]] + [tops[-1]]
    cells = "".join(
        f'<div class="band{" next" * _leads_on(graph, bands, place)}" '
        f'style="grid-row:{first + 1}/{end + 1};--gap:{below[place] - tops[end]:.2f}em">'
        + "".join(_card(section, number, picture, piece) for piece in band)
        + "</div>"
        for place, (first, end, band) in enumerate(bands)
    )
    if not graph.nodes:
        cells = f'<p class=missing style="grid-row:1/{len(rows) + 1}">{escape(graph.missing)}</p>'
    boxes = "".join(_region(node, names, rows) for node, names in picture.regions()) if number == 0 else ""
    total = escape(text.total(graph) if graph.nodes else "")
    return (
        f'<div class="column column-{number}"><div class=heading><h3>{escape(graph.title)}</h3><p>{total}</p></div>'
        f"<div class=rows>{boxes}{_arcs(graph, bands, heights)}{cells}</div></div>"
    )


def _pieces(graph: Graph, rows: dict[str, int]) -> list[Piece]:
    """Where each node stands: beside the eager nodes that it stands for, once for every run of them in a row.

    One that stands for none of them (a cast, the graph's end) stands with the node before it.
    """
    pieces: list[Piece] = []
    before = 0
    for node in graph.nodes:
        own = sorted({rows[name] for name in node.origins if name in rows} or {before})
        runs = [list(run) for _, run in groupby(enumerate(own), key=lambda pair: pair[1] - pair[0])]
        for number, run in enumerate(runs):
            pieces.append((run[0][1], run[-1][1] + 1, node, number == 0))
        before = own[-1]
    return pieces


def _bands(pieces: Iterable[Piece]) -> list[Band]:
    """Pieces whose rows overlap share a cell: (first row, row behind the last, pieces)."""
    bands: list[Band] = []
    for piece in sorted(pieces, key=lambda piece: piece[:2]):
        if bands and piece[0] < bands[-1][1]:
            first, end, inside = bands[-1]
            bands[-1] = (first, max(end, piece[1]), [*inside, piece])
        else:
            bands.append((piece[0], piece[1], [piece]))
    return bands


def _heights(picture: Picture, rows: dict[str, int]) -> list[float]:
    """Of each row, in em: room for as many cards as any column has in it."""
    heights = [ROW_EM] * len(rows)
    for graph in picture.graphs:
        for first, end, band in _bands(_pieces(graph, rows)):
            needed = sum(CARD_EM if begins else AGAIN_EM for *_, begins in band) + GAP_EM
            for row in range(first, end):
                heights[row] = max(heights[row], needed / (end - first))
    return heights


def _leads_on(graph: Graph, bands: Sequence[Band], place: int) -> bool:
    """Whether a value goes from this band to the one below."""
    if place + 1 == len(bands):
        return False
    here, below = ({piece[2].name for piece in bands[i][2]} for i in (place, place + 1))
    return any(edge.source in here and edge.target in below for edge in graph.edges)


def _card(section: int, column: int, picture: Picture, piece: Piece) -> str:
    *_, node, begins = piece
    graph = picture.graphs[column]
    heat = f' style="--heat:{100 * picture.heat(node):.1f}%"' if node.seconds is not None else ""
    if not begins:
        return f'<div class="card again" data-of="{_ids(section, node.origins)}"{heat}>{escape(node.operator)} …</div>'
    name = "" if node.name == node.operator else f" <small>{escape(node.name)}</small>"
    lines = [text.shape(node), text.figures(graph, node)]
    body = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
    return (
        f'<button type=button class="card c{column}" data-of="{_ids(section, node.origins)}"{heat} '
        f'data-figures="{escape(_figures(graph, node), quote=True)}">'
        f"<b>{escape(node.operator)}{name}</b>{body}</button>"
    )


def _ids(section: int, origins: Sequence[str]) -> str:
    return escape(" ".join(f"{section}/{name}" for name in origins), quote=True)


def _figures(graph: Graph, node: Node) -> str:
    """What the panel shows, a line each."""
    share = graph.share(node)
    lines = {
        "node": node.name,
        "operator": node.operator,
        "result": text.shape(node),
        "parameters": ", ".join(node.parameters),
        "operations": f"{node.flops:,} FLOP" if node.flops else "",
        "read and written": f"{node.bytes:,} bytes" if node.bytes else "",
        "time": f"{text.seconds(node.seconds)}, {100 * (share or 0):.1f} %" if node.seconds is not None else "",
        "stands for": ", ".join(node.origins) if node.origins != (node.name,) else "",
        "rule": node.rule,
    }
    return "\n".join(f"{key}: {value}" for key, value in lines.items() if value)


def _region(node: Node, names: Sequence[str], rows: dict[str, int]) -> str:
    """The box around the eager nodes that one rewritten node stands for."""
    own = sorted(rows[name] for name in names)
    runs = [list(run) for _, run in groupby(enumerate(own), key=lambda pair: pair[1] - pair[0])]
    return "".join(
        f'<div class=region style="grid-row:{run[0][1] + 1}/{run[-1][1] + 2}">'
        f"<span>{escape(node.operator)}</span></div>"
        for run in runs
    )


def _arcs(graph: Graph, bands: Sequence[Band], heights: Sequence[float]) -> str:
    """Values that do not go to the next cell, as arcs in the margin."""
    tops = [0.0, *accumulate(heights)]
    places: dict[str, int] = {}
    for place, (_, _, band) in enumerate(bands):
        for *_, node, begins in band:
            if begins:
                places[node.name] = place
    paths = []
    for edge in graph.edges:
        start, end = places[edge.source], places[edge.target]
        if end - start > 1:
            reach = max(5, 80 - 8 * (end - start))
            a, b = tops[bands[start][1]] - 2.2, tops[bands[end][0]] + 2.2
            paths.append(f'<path d="M100 {a:.1f} C{reach} {a + 2:.1f} {reach} {b - 2:.1f} 100 {b:.1f}"/>')
    box = f'viewBox="0 0 100 {tops[-1]:.1f}" preserveAspectRatio=none aria-hidden=true'
    return f"<svg class=arcs {box}>{''.join(paths)}</svg>" if paths else ""


def _table(picture: Picture) -> str:
    """All figures, for reading aloud and for copying."""
    heads = ("graph", "node", "operator", "shape", "dtype", "FLOP", "bytes", "seconds", "share", "stands for")
    rows = []
    for graph in picture.graphs:
        for node in graph.nodes:
            share = graph.share(node)
            cells = (
                *(graph.title, node.name, node.operator, str(list(node.shape)) if node.dtype else "", node.dtype),
                *(str(node.flops), str(node.bytes)),
                "" if node.seconds is None else f"{node.seconds:.3g}",
                "" if share is None else f"{100 * share:.1f} %",
                ", ".join(node.origins),
            )
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return (
        "<details><summary>All figures as a table</summary><div class=scroll tabindex=0>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )
