"""Strides of eager's results: a plan lays values out otherwise, and what leaves it has to lie as eager's does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.kernels.lowering import LOWERINGS, BoundAten, NotLowered
from fastgraph.kernels.norm.aten import BoundLayerNorm


def eager_strides(
    graph: fx.Graph,
    ops: Mapping[str, Any],
    constants: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    sizes: Mapping[fx.Node, torch.Size],
) -> list[tuple[int, ...]]:
    """Those of the stretch's results for such inputs. sizes: of the nodes' values.

    Of contiguous tensors all operators but views make contiguous ones. Of others ATen is asked, on the meta device: its
    functions for that are in Python, and slow to import.
    """
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    try:
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = _like(next(given))
            elif node.op == "get_attr":
                values[node] = _like(constants[str(node.target)])
            elif node.op != "output":
                values[node] = _value(node, ops, values, sizes)
    except Exception as error:  # whatever it is, ATen raises it too
        raise NotLowered("wrong inputs") from error
    return [values[node].stride() for node in graph.output_node().all_input_nodes]


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _value(
    node: fx.Node, ops: Mapping[str, Any], values: dict[fx.Node, Any], sizes: Mapping[fx.Node, torch.Size]
) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    read = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    op = ops[str(node.target)] if node.op == "call_module" else None
    is_computed = op is not None or node.target in LOWERINGS
    in_order = op is not None and (not isinstance(op, BoundAten) or isinstance(op, BoundLayerNorm))
    if isinstance(op, BoundAten):
        read += op.tensors()
    if is_computed and (in_order or all(x.is_contiguous() for x in read)):
        return torch.empty(sizes[node], device="meta")
    call: Any = op.shown if isinstance(op, BoundAten) else node.target
    return call(*args, **kwargs)
