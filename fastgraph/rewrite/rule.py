"""What a rewrite rule is, what it may ask about the graph, and what it reports."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp import autocast_mode
from torch.utils import _pytree as pytree

from fastgraph.aliases import Aliases, argument, is_mutation, written
from fastgraph.constants import constant_nodes, unversioned_nodes
from fastgraph.kernels.native import UNVERSIONED

aten = torch.ops.aten
__all__ = [
    "UNVERSIONED",
    "Facts",
    "Match",
    "Refusal",
    "Rule",
    "argument",
    "aten",
    "calls",
    "is_mutation",
    "make",
    "only_user",
    "origins",
    "value",
]

_SWITCHES = {
    torch._C._set_grad_enabled: "gradient mode changes",
    autocast_mode._enter_autocast: "autocast begins",
    autocast_mode._exit_autocast: "autocast ends",
}
# Dtypes that fused kernels compute in, by device.
_KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class Refusal:
    """A place where a rule's pattern was found and its check failed."""

    rule: str
    node: str  # the eager node where the pattern is anchored
    reason: str


@dataclass
class Match:
    """A place where a rule's pattern was found. `reason` says why it may not be rewritten; None if it may."""

    nodes: list[fx.Node]  # what the rewrite replaces, in graph order; the last one's value is the pattern's value
    parts: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class Facts:
    """What rules may know of a graph beyond its nodes.

    aliases: which values may be one memory, and who writes it. constants: what depends on parameters and buffers alone.
    weights: what may be a fused op's weight, since it is the same in every call: `weights` and what is computed from
    them, or the constants. dtype: what the graph will be cast to, None for its own.
    """

    def __init__(self, graph: fx.Graph, weights: Iterable[fx.Node] | None, dtype: torch.dtype | None) -> None:
        self.aliases = Aliases(graph)
        self.constants = constant_nodes(graph, self.aliases)
        self.unversioned = unversioned_nodes(graph, self.constants, partial(_tensor, graph.owning_module))
        self.weights = self.constants
        if weights is not None:
            self.weights = self.constants | constant_nodes(graph, self.aliases, list(weights))
        self._dtype = dtype
        self._in_autocast = _in_autocast(graph)

    def add(self, node: fx.Node) -> None:
        """Takes in a node that a rule made."""
        self.aliases.add(node)
        if self.aliases.writers(node):
            return
        if not self.unversioned.isdisjoint(node.all_input_nodes):
            self.unversioned.add(node)
        for nodes in (self.constants, self.weights):
            if node.all_input_nodes and all(arg in nodes for arg in node.all_input_nodes):
                nodes.add(node)

    def barrier(self, nodes: Sequence[fx.Node]) -> str | None:
        """Why the first of `nodes`, which are in graph order, may not be computed where the last one stands."""
        if any(node in self._in_autocast for node in nodes):
            return "it is inside an autocast region"
        read = {arg for node in nodes for arg in [node, *node.all_input_nodes]}
        between = nodes[0].next
        while len(nodes) > 1 and between is not nodes[-1]:
            if between.target in _SWITCHES:
                return f"{_SWITCHES[between.target]} between its parts"
            if between not in nodes and any(self.aliases.share(to, arg) for to in written(between) for arg in read):
                return f"{between.name} writes in place between its parts"
            between = between.next
        return None

    def varies(self, values: Iterable[Any]) -> str | None:
        """Why one of a fused op's weights is not, or may not be, the same in every call; None if all are."""
        for node in values:
            if node in self.unversioned:
                return UNVERSIONED
            if not isinstance(node, fx.Node) or node in self.weights:
                continue
            if writers := self.aliases.writers(node):
                return f"its weight {node.name} is written by {writers[0].name}"
            made = "is an input of the graph" if node.op == "placeholder" else "is computed anew in every call"
            return f"its weight {node.name} {made}"
        return None

    def no_kernel(self, node: fx.Node) -> str | None:
        """Why no fused kernel computes in the node's dtype; None if one does."""
        recorded = value(node)
        if not recorded.is_floating_point():
            return f"dtype {recorded.dtype} is not floating point"
        dtype, device = self._dtype or recorded.dtype, recorded.device.type
        if dtype not in _KERNEL_DTYPES.get(device, ()):
            return f"no kernel computes in {str(dtype).removeprefix('torch.')} on {device}"
        return None


def _tensor(owner: fx.GraphModule | None, node: fx.Node) -> object:
    """The tensor of a get_attr node, None where the graph belongs to no module."""
    return None if owner is None else attrgetter(str(node.target))(owner)


def _in_autocast(graph: fx.Graph) -> set[fx.Node]:
    depth, inside = 0, set()
    for node in graph.nodes:
        depth += (node.target is autocast_mode._enter_autocast) - (node.target is autocast_mode._exit_autocast)
        if depth:
            inside.add(node)
    return inside


class Rule(Protocol):
    """Pattern and check in `match`, the rewrite in `replace`. Exact in real arithmetic."""

    name: str

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        """The pattern anchored at `node`, with a reason where the check refuses it; None where it is not there."""

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        """Builds the replacement before the last matched node and returns the node that takes over its value."""


def calls(node: Any, *targets: Any) -> bool:
    """Whether `node` calls one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def only_user(node: fx.Node) -> fx.Node | None:
    """The single node that uses `node`'s value, once or more; None if there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def value(node: Any) -> Any:
    """The fake tensor that the capture recorded for a node."""
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def make(graph: fx.Graph, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A node that calls `function`, with the fake tensor of its result."""
    made = graph.call_function(function, args, kwargs)
    values = fx.map_arg((args, kwargs), value)
    modes = [leaf.fake_mode for leaf in pytree.tree_leaves(values) if isinstance(leaf, FakeTensor)]
    with modes[0] if modes else nullcontext(), torch.no_grad():
        made.meta["val"] = function(*values[0], **values[1])
    return made


def origins(nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the eager nodes that these nodes stand for."""
    return list(dict.fromkeys(name for node in nodes for name in node.meta.get("origins", [node.name])))
