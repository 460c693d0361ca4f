"""A stretch of a program as steps of kernels, for inputs of one shape: each node by what `kernels` registers.

A value that only one node reads waits until that is reached: it may become an epilogue, or more of one pass over
memory. What is concatenated is computed where it belongs in the concatenation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

# Each registers how ATen's operators are lowered to its kernels.
import fastgraph.kernels.conv.aten
import fastgraph.kernels.conv_transpose.aten
import fastgraph.kernels.copy.aten
import fastgraph.kernels.norm.aten
import fastgraph.kernels.pointwise.aten
import fastgraph.kernels.pool.aten
import fastgraph.kernels.reduce.aten
import fastgraph.kernels.upsample.aten  # noqa: F401
from fastgraph.kernels.copy.aten import parts
from fastgraph.kernels.library import Size
from fastgraph.kernels.lowering import LOWERINGS, BoundAten, Lowering, NotLowered, Operand, Pending, require, size_of
from fastgraph.strides import known_strides

aten = torch.ops.aten
_CAT = aten.cat.default


class Lowered(NamedTuple):
    """What a plan does with inputs of one shape: its slots and steps as `Plan.admit` takes them, and its results."""

    slots: list[Any]
    inputs: list[int]
    outputs: list[int]
    steps: list[Any]
    sizes: list[Size]
    strides: list[tuple[int, ...]] | None  # of eager's results; None: only eager knows


def lower(
    graph: fx.Graph, ops: Mapping[str, Any], constants: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]
) -> Lowered | None:
    """None where no kernels compute this, or ATen would raise an error.

    ops: what call_module nodes call. constants: what get_attr nodes name.
    """
    try:
        walk = _Walk(graph, ops, constants, inputs)
        if places := _places(graph, walk.sizes):
            walk = _Walk(graph, ops, constants, inputs, places, walk.sizes)
        return walk.lowered(known_strides(graph, ops, constants, inputs, walk.sizes))
    except NotLowered:
        return None


class _Walk:
    """places: see `_places`; sizes: those of an earlier walk without places."""

    def __init__(
        self,
        graph: fx.Graph,
        ops: Mapping[str, Any],
        constants: Mapping[str, torch.Tensor],
        inputs: Sequence[torch.Tensor],
        places: Mapping[fx.Node, tuple[fx.Node, int]] | None = None,
        sizes: Mapping[fx.Node, torch.Size] | None = None,
    ) -> None:
        self._graph, self._ops, self._constants = graph, ops, constants
        self._low = Lowering()
        self._values: dict[fx.Node, Any] = {}
        self._places = places or {}
        self.sizes = dict(sizes or {})
        self._wholes: dict[fx.Node, torch.Tensor] = {}
        self._inputs = [self._low.new(x.shape) for x in inputs]
        self._slots = [self._low.slot(x) for x in self._inputs]
        self._go()

    def _go(self) -> None:
        given = iter(self._inputs)
        for node in self._graph.nodes:
            if node.op == "placeholder":
                value: Any = next(given)
            elif node.op == "get_attr":
                value = self._low.constant(self._constants[str(node.target)])
            elif node.op == "output":
                break
            else:
                value = self._compute(node)
            self._values[node] = value
            if isinstance(value, torch.Tensor | Pending):
                self.sizes[node] = size_of(value)

    def lowered(self, strides: list[tuple[int, ...]] | None) -> Lowered:
        """All of it; strides: of eager's results."""
        results = list(self._graph.output_node().all_input_nodes)
        outputs: list[int] = []
        for node in results:
            outputs.append(self._result(self._ready(node), [*self._slots, *outputs]))
        sizes = [tuple(self.sizes[node]) for node in results]
        return Lowered(self._low.slots, self._slots, outputs, self._low.steps, sizes, strides)

    def _result(self, x: torch.Tensor, taken: list[int]) -> int:
        """The slot of a result: contiguous memory of its own."""
        if x.dim() == 0:
            raise NotLowered("a result without axes")
        y = self._low.contiguous(x)
        slot = self._low.slot(y)
        is_constant = bool(self._low.slots[self._low.slots[slot][2]][4])
        if slot in taken or is_constant or not self._low.is_own(y):
            slot = self._low.slot(self._low.copy(x, self._low.new(x.shape)))
        return slot

    def _ready(self, node: fx.Node) -> Any:
        """The node's value, computed."""
        value = self._values[node]
        if isinstance(value, Pending):
            self._low.into(self._place(node))
            self._values[node] = value = self._low.ready(value)
            self._low.into(None)
        return value

    def _place(self, node: fx.Node) -> torch.Tensor | None:
        """Where the node's value belongs in a concatenation."""
        if node in self._wholes:
            return self._wholes[node]
        if node not in self._places:
            return None
        cat, index = self._places[node]
        sizes = [self.sizes[n][1] for n in cat.args[0]]  # type: ignore[union-attr,index]
        return parts(self._whole(cat), sizes, 1)[index]

    def _whole(self, cat: fx.Node) -> torch.Tensor:
        if cat not in self._wholes:
            place = self._place(cat)
            self._wholes[cat] = self._low.new(self.sizes[cat], channels_last=True) if place is None else place
        return self._wholes[cat]

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self._call(node, self._ops[str(node.target)])
        lowering = LOWERINGS.get(node.target)
        if lowering is None:
            return self._view(node)
        args, kwargs = self._arguments(node)
        self._low.into(self._place(node))
        value = lowering(self._low, *args, **kwargs)
        self._low.into(None)
        return value

    def _call(self, node: fx.Node, op: Any) -> Operand:
        (x,), _ = self._arguments(node)
        if isinstance(op, BoundAten):
            self._low.into(self._place(node))
            value = op.lower(self._low, x)
            self._low.into(None)
            return value
        x = self._low.ready(x)
        has_rows = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
        x = x if has_rows and op.op.takes_row_strides else self._low.contiguous(x)
        size = op.output_size(torch.empty(x.shape))
        require(size is not None, "the kernel does not take this input")
        return self._low.step(op.kernel, [x], self._low.new(size))

    def _arguments(self, node: fx.Node) -> Any:
        """What a lowering is called with: what is not computed yet where only this node reads it, and once."""
        leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]

        def value(n: fx.Node) -> Any:
            alone = len(n.users) == 1 and leaves.count(n) == 1
            return self._values[n] if alone else self._ready(n)

        if node.target is _CAT:  # each of them in its place
            return fx.map_arg((node.args, node.kwargs), self._ready)
        return fx.map_arg((node.args, node.kwargs), value)

    def _view(self, node: fx.Node) -> Any:
        """A view of memory where its strides allow one, else of a copy in order; sizes as numbers."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._ready)
        x, *others = args
        if not isinstance(x, torch.Tensor):  # one of several views
            return node.target(*args, **kwargs)  # type: ignore[operator]
        for in_order in (False, True):
            source = self._low.contiguous(x) if in_order else x
            try:
                result = node.target(source, *others, **kwargs)  # type: ignore[operator]
            except Exception as error:  # no view of such strides, or as ATen
                if in_order:
                    raise NotLowered("no view") from error
                continue
            if not isinstance(result, torch.Tensor):
                return result
            if result.untyped_storage()._cdata == source.untyped_storage()._cdata:
                return result
        raise NotLowered("no view")


def _places(graph: fx.Graph, sizes: Mapping[fx.Node, torch.Size]) -> dict[fx.Node, tuple[fx.Node, int]]:
    """The last concatenation over channels, and the place in it, of the values that kernels can write there."""
    places: dict[fx.Node, tuple[fx.Node, int]] = {}
    for cat in graph.find_nodes(op="call_function", target=_CAT):
        dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
        rank = len(sizes[cat])
        if rank not in (3, 4) or dim % rank != 1:
            continue
        for i, node in enumerate(cat.args[0]):
            is_computed = node.op == "call_module" or node.target in LOWERINGS
            if is_computed and cat.args[0].count(node) == 1:
                places[node] = cat, i
    return places
