"""A picture in graphviz's language, and through its `dot` program as SVG and PNG."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import graphviz

from export import files
from export.graphs import text
from export.graphs.nodes import Graph, Node, Picture

INSTALL = "graphviz's `dot` is not installed, so there are no SVG and PNG: apt install graphviz (or brew, conda)"
TIMEOUT_S = 60
_FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"
_COOL, _HOT = (255, 255, 255), (255, 150, 60)


def to_dot(picture: Picture) -> str:
    """The graphs side by side. Boxes around eager nodes are what one rewritten node stands for, with an arrow to it.

    Where times were measured, a node is the more orange the larger its share of its graph's time.
    """
    dot = graphviz.Digraph(picture.name, graph_attr={"compound": "true", "rankdir": "TB", "fontname": _FONT})
    dot.attr(label="\\n".join(_escape(line) for line in (picture.name, *picture.notes)), labelloc="t", fontsize="16")
    dot.attr("node", shape="box", style="rounded,filled", fontname=_FONT, fontsize="11", margin="0.12,0.06")
    dot.attr("edge", color="#555555", arrowsize="0.7")
    for index, graph in enumerate(picture.graphs):
        with dot.subgraph(name=f"cluster_{index}") as column:
            title = f"{graph.title}\\n{_escape(text.total(graph) if graph.nodes else graph.missing)}"
            column.attr(label=title, style="rounded", color="#bbbbbb", fontsize="14")
            _nodes(column, index, graph, picture)
            if not graph.nodes:
                column.node(f"{index}:none", label="not available", style="dashed,rounded")
        for edge in graph.edges:
            dot.edge(_id(index, edge.source), _id(index, edge.target))
    for number, region in enumerate(_regions(picture)):
        last = [node.name for node in picture.eager.nodes if node.name in region.origins][-1]
        style = {"style": "dashed", "color": "#4477aa", "constraint": "false"}
        dot.edge(_id(0, last), _id(1, region.name), ltail=f"cluster_region_{number}", **style)
    return dot.source


def render(source: str, stem: Path, kinds: tuple[str, ...] = ("svg", "png")) -> tuple[list[Path], str]:
    """Writes ``stem.dot`` first, then a file for each kind; returns what there is, and why something is not.

    Existing files are replaced. A layout that takes more than ``TIMEOUT_S`` is given up.
    """
    made = [_beside(stem, "dot")]
    files.write(made[0], source)
    if not have_dot():
        return made, INSTALL
    for kind in kinds:
        try:
            done = subprocess.run(["dot", f"-T{kind}"], input=source.encode(), capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return made, f"{stem.name}.{kind}: dot took more than {TIMEOUT_S} s; {stem.name}.dot is there"
        if done.returncode:
            return made, f"{stem.name}.{kind}: dot failed: {done.stderr.decode(errors='replace').strip()}"
        made.append(_beside(stem, kind))
        files.write(made[-1], done.stdout)
    return made, ""


def have_dot() -> bool:
    """Whether graphviz's `dot` program is installed."""
    return shutil.which("dot") is not None


def _beside(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}")


def _regions(picture: Picture) -> list[Node]:
    return [node for node in picture.regions() if {n.name for n in picture.eager.nodes} & set(node.origins)]


def _nodes(column: graphviz.Digraph, index: int, graph: Graph, picture: Picture) -> None:
    """The column's nodes; the eager ones within the boxes of what they become."""
    regions = _regions(picture) if index == 0 else []
    inside: set[str] = set()
    for number, region in enumerate(regions):
        with column.subgraph(name=f"cluster_region_{number}") as box:
            box.attr(label=_escape(region.operator), style="rounded,filled", color="#4477aa", fillcolor="#eef3f9")
            box.attr(fontsize="11", fontcolor="#225588")
            for node in graph.nodes:
                if node.name in region.origins and node.name not in inside:
                    inside.add(node.name)
                    _draw(box, index, graph, node)
    for node in graph.nodes:
        if node.name not in inside:
            _draw(column, index, graph, node)


def _draw(dot: graphviz.Digraph, index: int, graph: Graph, node: Node) -> None:
    name = node.name if node.name == node.operator else f"{node.operator}  ({node.name})"
    lines = [name, text.shape(node), ", ".join(node.parameters), text.figures(graph, node)]
    if index == 2:
        lines.append("of " + ", ".join(node.origins))
    label = "\\n".join(_escape(_shortened(line)) for line in lines if line)
    dot.node(_id(index, node.name), label=label, fillcolor=_colour(graph.share(node)))


def _shortened(line: str, length: int = 64) -> str:
    return line if len(line) <= length else line[: length - 1] + "…"


def _colour(share: float | None) -> str:
    mixed = (round(c + (h - c) * (share or 0)) for c, h in zip(_COOL, _HOT, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _id(index: int, name: str) -> str:
    return f"{index}_{name}"


def _escape(line: str) -> str:
    return str(graphviz.escape(line))
