"""Floating-point operations and bytes of one node, by the shapes of the example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastgraph.kernels.library import Op

aten = torch.ops.aten
_FREE = (aten.clone, aten.copy_, aten._to_copy, aten.contiguous, aten.empty, aten.cat, aten.constant_pad_nd)
# The second is Inductor's own for the first.
_POOLS = ("aten.max_pool2d_with_indices", "prims._low_memory_max_pool_with_offsets")


@dataclass(frozen=True)
class Cost:
    """``flops``: multiply and add are two; elementwise operators, comparisons and reductions one an element.
    ``bytes``: read and written, parameters included, if every value went through memory once; views cost nothing."""

    flops: int
    bytes: int


class _Flops(TorchDispatchMode):
    """Adds up what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **(kwargs or {}), out_val=result))
        elif str(packet) in _POOLS:
            self.total += result[0].numel() * math.prod(_pair(args[1]))
        elif packet not in _FREE and not _is_view(func):
            self.total += max((t.numel() for t in pytree.tree_leaves((args, result)) if _is_tensor(t)), default=0)
        return result


def cost(node: fx.Node, values: dict[fx.Node, Any]) -> Cost:
    """What calling the node's operator costs, ``values`` holding meta tensors for all nodes before it."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if not isinstance(node.target, torch._ops.OpOverload) or _is_view(node.target):
        return Cost(0, 0)
    tensors = [t for t in pytree.tree_leaves((args, kwargs, values[node])) if _is_tensor(t)]
    moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    op = Op.of(node.target)  # its fake knows a fused op's shape alone; the definition knows its operators
    with torch.no_grad(), _Flops() as flops:
        (node.target if op is None else op.reference)(*args, **kwargs)
    return Cost(flops.total, moved)


def operations(node: fx.Node) -> int:
    """Floating-point operations of a node that has fake tensors in ``meta["val"]``, as Inductor's have."""
    if not isinstance(node.target, torch._ops.OpOverload) or _is_view(node.target):
        return 0
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _meta(n.meta["val"]))
    with torch.no_grad(), _Flops() as flops:
        node.target(*args, **kwargs)
    return flops.total


def _meta(value: Any) -> Any:
    """Without data: the same tensors and numbers, free sizes those of the example. No size is fixed by the look."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty([plain(n) for n in leaf.shape], dtype=leaf.dtype, device="meta")
        return leaf.node.hint if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) else leaf

    return pytree.tree_map(plain, value)


def _is_view(func: Any) -> bool:
    """Whether the result is memory of an argument, which is not written to."""
    schema = func._schema
    return not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _pair(numbers: Any) -> list[int]:
    return [numbers[0], numbers[-1]]
