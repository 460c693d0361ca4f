"""Strides of eager's results: a plan lays values out otherwise, and what leaves it has to lie as eager's does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.kernels.lowering import LOWERINGS, BoundAten
from fastgraph.kernels.norm.aten import BoundLayerNorm


def known_strides(
    graph: fx.Graph,
    ops: Mapping[str, Any],
    constants: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    sizes: Mapping[fx.Node, torch.Size],
) -> list[tuple[int, ...]] | None:
    """Those of the stretch's results for such inputs, where rules tell; sizes: of the nodes' values.

    Of contiguous tensors all operators but views make contiguous ones. What they make of others depends on each, and on
    the machine's libraries: None, where a result may hang on that.
    """
    values: dict[fx.Node, Any] = {}  # None: not known
    given = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = _like(next(given))
        elif node.op == "get_attr":
            values[node] = _like(constants[str(node.target)])
        elif node.op != "output":
            values[node] = _value(node, ops, values, sizes)
    results = [values[node] for node in graph.output_node().all_input_nodes]
    return None if any(x is None for x in results) else [x.stride() for x in results]


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _value(
    node: fx.Node, ops: Mapping[str, Any], values: dict[fx.Node, Any], sizes: Mapping[fx.Node, torch.Size]
) -> Any:
    read = [values[n] for n in node.all_input_nodes]
    op = ops[str(node.target)] if node.op == "call_module" else None
    if op is not None and (not isinstance(op, BoundAten) or isinstance(op, BoundLayerNorm)):
        return torch.empty(sizes[node], device="meta")  # in order whatever the input
    if any(value is None for value in read):
        return None
    if op is None and node.target not in LOWERINGS:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        return node.target(*args, **kwargs)  # type: ignore[operator]
    read += [] if op is None else op.tensors()
    in_order = all(x.is_contiguous() for x in pytree.tree_leaves(read) if isinstance(x, torch.Tensor))
    return torch.empty(sizes[node], device="meta") if in_order else None
