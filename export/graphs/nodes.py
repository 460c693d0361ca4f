"""Graphs as data: a short list of nodes and edges, from which every picture is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from fastgraph.constants import constant_nodes
from fastgraph.cost import Cost, cost
from fastgraph.export.graphs.run import Recorded


@dataclass(frozen=True)
class Node:
    """An operator, a kernel, an input or the output. Figures are those of one call on the example."""

    name: str
    operator: str  # "conv2d", "fastgraph.mlp", "input", "output"
    shape: tuple[int, ...]  # of its (first) result
    dtype: str  # "float32"
    flops: int = 0
    bytes: int = 0
    parameters: tuple[str, ...] = ()  # that it reads, "conv1.weight"
    origins: tuple[str, ...] = ()  # the eager nodes that it stands for
    rule: str = ""  # that made it, "conv_pool_mlp"
    seconds: float | None = None


@dataclass(frozen=True)
class Edge:
    """A value that goes from one node to another."""

    source: str
    target: str


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, and edges. ``missing`` says why there are none."""

    title: str
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    missing: str = ""

    @property
    def seconds(self) -> float | None:
        """Of all nodes; None where they were not measured."""
        measured = [node.seconds for node in self.nodes if node.seconds is not None]
        return sum(measured) if measured else None

    def share(self, node: Node) -> float | None:
        """0..1: the node's part of the time; None where it was not measured."""
        total = self.seconds
        return None if node.seconds is None or not total else node.seconds / total


@dataclass(frozen=True)
class Picture:
    """A model's graphs side by side."""

    name: str
    eager: Graph
    rewritten: Graph
    inductor: Graph
    notes: tuple[str, ...] = field(default=())

    @property
    def graphs(self) -> tuple[Graph, Graph, Graph]:
        """From left to right."""
        return self.eager, self.rewritten, self.inductor

    def heat(self, node: Node) -> float:
        """0..1: the node's time as part of the whole captured graph's, so that colours of all graphs compare."""
        total = self.eager.seconds
        return 0.0 if node.seconds is None or not total else min(1.0, node.seconds / total)

    def regions(self) -> list[tuple[Node, tuple[str, ...]]]:
        """Each rewritten node that stands for several eager nodes, with their names in the order in which they run."""
        eager = [node.name for node in self.eager.nodes]
        found = [(node, tuple(name for name in eager if name in node.origins)) for node in self.rewritten.nodes]
        return [(node, names) for node, names in found if len(names) > 1]


def read(title: str, graph: fx.Graph, recorded: Recorded, seconds: dict[fx.Node, float] | None = None) -> Graph:
    """The graph's inputs, operators and output. Parameters, and what is computed from them alone once, are no nodes."""
    constants = constant_nodes(graph)
    shown = [node for node in graph.nodes if node not in constants]
    edges = [Edge(source.name, node.name) for node in shown for source in node.all_input_nodes if source in shown]
    nodes = [_node(node, recorded, constants) for node in shown]
    if seconds is not None:
        timed = {node.name: seconds[node] for node in shown if node in seconds}
        nodes = [replace(node, seconds=timed.get(node.name)) for node in nodes]
    return Graph(title, tuple(nodes), tuple(edges))


def _node(node: fx.Node, recorded: Recorded, constants: set[fx.Node]) -> Node:
    shape, dtype = _result(recorded.values.get(node))
    calls = node.op == "call_function"
    spent = cost(node, recorded.values) if calls else Cost(0, 0)
    return Node(
        name=node.name,
        operator=_operator(node),
        shape=shape,
        dtype=dtype,
        flops=spent.flops,
        bytes=spent.bytes,
        parameters=tuple(dict.fromkeys(_parameters(node, constants))) if calls else (),
        origins=tuple(node.meta.get("origins", [node.name])),
        rule=node.meta.get("rule", ""),
    )


def _operator(node: fx.Node) -> str:
    if node.op == "call_function":
        return str(node.target).removeprefix("aten.").removesuffix(".default")
    return {"placeholder": "input", "get_attr": "buffer"}.get(node.op, node.op)


def _parameters(node: fx.Node, constants: set[fx.Node]) -> Iterator[str]:
    """The module's tensors that a node's constant inputs are made of."""
    for source in node.all_input_nodes:
        if source in constants:
            if source.op == "get_attr":
                yield str(source.target)
            yield from _parameters(source, constants)


def _result(value: object) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of the first tensor in a value; () and "" where there is none."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype).removeprefix("torch.")
    return (), ""
