"""A picture in graphviz's language, and through its `dot` program as SVG and PNG."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from fastgraph.export import files
from fastgraph.export.graphs import text
from fastgraph.export.graphs.nodes import Graph, Node, Picture
from fastgraph.extras import require

if TYPE_CHECKING:
    import graphviz

INSTALL = "graphviz's `dot` is not installed, so there are no SVG and PNG: apt install graphviz (or brew, conda)"
TIMEOUT_S = 60
_FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"
_ATTRIBUTES = {"rankdir": "TB", "fontname": _FONT}
_COOL, _HOT = (255, 255, 255), (255, 150, 60)


def to_dot(picture: Picture) -> str:
    """The graphs side by side. A box around eager nodes has the name of the rewritten operator that stands for them.

    Where times were measured, a node is the more orange the longer it takes, compared with the whole captured graph.
    ModuleNotFoundError where the Python package graphviz is not installed.
    """
    require("graphviz", by="export.graphs.to_dot")
    import graphviz

    dot = graphviz.Digraph(picture.name, graph_attr=_ATTRIBUTES)
    notes = [line for note in picture.notes for line in textwrap.wrap(note, 90)]
    dot.attr(label="\\n".join(_escape(line) for line in (picture.name, *notes)), labelloc="t", fontsize="16")
    dot.attr("node", shape="box", style="rounded,filled", fontname=_FONT, fontsize="11", margin="0.12,0.06")
    dot.attr("edge", color="#555555", arrowsize="0.7")
    for index, graph in enumerate(picture.graphs):
        with dot.subgraph(name=f"cluster_{index}") as column:
            title = f"{graph.title}\\n{_escape(text.total(graph) if graph.nodes else graph.missing)}"
            column.attr(label=title, style="rounded", color="#bbbbbb", fontsize="14")
            _nodes(column, index, graph, picture)
            if not graph.nodes:
                column.node(_id(index, ""), label="not available", style="dashed,rounded")
        for edge in graph.edges:
            dot.edge(_id(index, edge.source), _id(index, edge.target))
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


def _nodes(column: graphviz.Digraph, index: int, graph: Graph, picture: Picture) -> None:
    """The column's nodes; the eager ones within the boxes of what they become."""
    inside: set[str] = set()
    for number, (region, names) in enumerate(picture.regions() if index == 0 else []):
        with column.subgraph(name=f"cluster_region_{number}") as box:
            box.attr(
                label=_escape(region.operator.removeprefix("fastgraph.")),
                labeljust="l",
                style="rounded,filled",
                color="#4477aa",
                fillcolor="#eef3f9",
            )
            box.attr(fontsize="10", fontcolor="#225588")
            for node in graph.nodes:
                if node.name in names and node.name not in inside:
                    inside.add(node.name)
                    _draw(box, index, picture, node)
    for node in graph.nodes:
        if node.name not in inside:
            _draw(column, index, picture, node)


def _draw(dot: graphviz.Digraph, index: int, picture: Picture, node: Node) -> None:
    graph = picture.graphs[index]
    lines = [_title(node), text.shape(node), *_wrapped(", ".join(node.parameters)), text.figures(graph, node)]
    if index == 2 and node.origins:
        lines += _wrapped("of " + ", ".join(node.origins))
    label = "\\n".join(_escape(line) for line in lines if line)
    dot.node(_id(index, node.name), label=label, fillcolor=_colour(picture.heat(node)))


def _title(node: Node) -> str:
    return node.name if node.name == node.operator else f"{node.operator}  ({node.name})"


def _wrapped(line: str, width: int = 48, most: int = 4) -> list[str]:
    """The line in several, broken at its blanks; what is too long ends in an ellipsis."""
    return textwrap.wrap(line, width, break_long_words=False, max_lines=most, placeholder=" …")


def _colour(heat: float) -> str:
    mixed = (round(c + (h - c) * heat) for c, h in zip(_COOL, _HOT, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _id(index: int, name: str) -> str:
    return f"{index}_{name}"


def _escape(line: str) -> str:
    import graphviz

    return str(graphviz.escape(line))
