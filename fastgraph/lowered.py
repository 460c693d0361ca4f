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
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.copy.aten import parts
from fastgraph.kernels.library import Size
from fastgraph.kernels.lowering import LOWERINGS, BoundAten, Lowering, NotLowered, Operand, Pending

aten = torch.ops.aten
_CAT = aten.cat.default


class Lowered(NamedTuple):
    """What a plan does with inputs of one shape: its slots and steps as `Plan.admit` takes them, and its results."""

    slots: list[Any]
    inputs: list[int]
    outputs: list[int]
    steps: list[Any]
    sizes: list[Size]
    strides: list[tuple[int, ...]]  # that eager's results have


def lower(
    graph: fx.Graph, ops: Mapping[str, Any], constants: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]
) -> Lowered | None:
    """None where no kernels compute this, or ATen would raise an error.

    ops: what call_module nodes call. constants: what get_attr nodes name.
    """
    shown = [torch.empty_strided(x.shape, x.stride(), device="meta") for x in inputs]
    try:
        values = _shown(graph, ops, constants, shown)
    except Exception:  # whatever it is, ATen raises it too
        return None
    try:
        return _Walk(graph, ops, constants, values).lowered()
    except NotLowered:
        return None


def _shown(graph: fx.Graph, ops: Mapping[str, Any], constants: Mapping[str, Any], inputs: Sequence[Any]) -> Any:
    """What eager makes of tensors of these sizes and strides, node by node, on the meta device."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            x = constants[str(node.target)]
            values[node] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        elif node.op == "call_module":
            values[node] = _shown_op(ops[str(node.target)], values[node.args[0]])
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = node.target(*args, **kwargs)
    return values


def _shown_op(op: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(op, BoundAten):
        return op.shown(x)
    size = op.output_size(torch.empty(x.shape))
    if size is None:
        raise NotLowered("the kernel does not take this input")
    return torch.empty(size, device="meta")


class _Walk:
    def __init__(
        self, graph: fx.Graph, ops: Mapping[str, Any], constants: Mapping[str, torch.Tensor], shown: dict[fx.Node, Any]
    ) -> None:
        self._graph, self._ops, self._constants, self._shown = graph, ops, constants, shown
        self._low = Lowering()
        self._values: dict[fx.Node, Any] = {}
        self._places = _places(graph, shown)
        self._wholes: dict[fx.Node, torch.Tensor] = {}

    def lowered(self) -> Lowered:
        """All of it."""
        inputs = list(self._graph.find_nodes(op="placeholder"))
        for node in inputs:
            self._values[node] = self._low.new(self._shown[node].shape)
        slots = [self._low.slot(self._values[node]) for node in inputs]
        for node in self._graph.nodes:
            if node.op in ("call_module", "call_function"):
                self._values[node] = self._compute(node)
            elif node.op == "get_attr":
                self._values[node] = self._low.constant(self._constants[str(node.target)])
        results = list(self._graph.output_node().all_input_nodes)
        outputs: list[int] = []
        for node in results:
            outputs.append(self._result(self._ready(node), [*slots, *outputs]))
        sizes = [tuple(self._shown[node].shape) for node in results]
        strides = [self._shown[node].stride() for node in results]
        return Lowered(self._low.slots, slots, outputs, self._low.steps, sizes, strides)

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
        sizes = [self._shown[n].shape[1] for n in cat.args[0]]  # type: ignore[union-attr,index]
        return parts(self._whole(cat), sizes, 1)[index]

    def _whole(self, cat: fx.Node) -> torch.Tensor:
        if cat not in self._wholes:
            place = self._place(cat)
            self._wholes[cat] = self._low.new(self._shown[cat].shape, channels_last=True) if place is None else place
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
            if op.kernel is None:
                raise NotLowered("no kernel for such weights")
            self._low.into(self._place(node))
            value = op.lower(self._low, x)
            self._low.into(None)
            return value
        x = self._low.ready(x)
        is_mlp = isinstance(op, Bound) and op.op.name == "mlp"
        has_rows = is_mlp and x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
        x = x if has_rows else self._low.contiguous(x)
        return self._low.step(op.kernel, [x], self._low.new(self._shown[node].shape))

    def _arguments(self, node: fx.Node) -> Any:
        """What a lowering is called with: what is not computed yet where only this node reads it, and once."""
        leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]

        def value(n: fx.Node) -> Any:
            alone = len(n.users) == 1 and leaves.count(n) == 1
            return self._values[n] if alone else self._ready(n)

        if node.target is _CAT:
            return fx.map_arg((node.args, node.kwargs), self._ready)
        return fx.map_arg((node.args, node.kwargs), value)

    def _view(self, node: fx.Node) -> Any:
        """A view of memory where its strides allow one, else of a copy in order; sizes as numbers."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._ready)
        x, *others = args
        if not isinstance(x, torch.Tensor):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        for one in (lambda: x, lambda: self._low.contiguous(x)):
            try:
                source = one()
                result = node.target(source, *others, **kwargs)  # type: ignore[operator]
            except RuntimeError:  # no view of such strides
                continue
            if not isinstance(result, torch.Tensor):
                return result
            if result.untyped_storage()._cdata == source.untyped_storage()._cdata:
                return result
        raise NotLowered("no view")


def _places(graph: fx.Graph, shown: dict[fx.Node, Any]) -> dict[fx.Node, tuple[fx.Node, int]]:
    """The last concatenation over channels, and the place in it, of the values that kernels can write there."""
    places: dict[fx.Node, tuple[fx.Node, int]] = {}
    for cat in graph.find_nodes(op="call_function", target=_CAT):
        dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
        rank = shown[cat].dim()
        if rank not in (3, 4) or dim % rank != 1:
            continue
        for i, node in enumerate(cat.args[0]):
            is_computed = node.op == "call_module" or node.target in LOWERINGS
            if is_computed and cat.args[0].count(node) == 1:
                places[node] = cat, i
    return places
