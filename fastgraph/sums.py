"""The largest sum of absolute terms of the products that a graph ends with."""

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.aliases import argument

aten = torch.ops.aten

_PRODUCTS = (
    aten.linear,
    aten.matmul,
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.conv1d,
    aten.conv2d,
    aten.conv3d,
    aten.conv_transpose1d,
    aten.conv_transpose2d,
    aten.conv_transpose3d,
)
# max |f(x + d) - f(x)| / max |d|, by the absolute sums of the rows of f's Jacobian: softmax's are 2 p (1 - p),
# log_softmax's 2 (1 - p).
_LIPSCHITZ: dict[Any, float] = {
    **dict.fromkeys((aten.relu, aten.relu_, aten.relu6, aten.tanh, aten.tanh_, aten.hardtanh, aten.abs, aten.neg), 1),
    **dict.fromkeys((aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.amax, aten.amin, aten.clamp), 1),
    **dict.fromkeys((aten.mean, aten.avg_pool1d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.cat, aten.stack), 1),
    **dict.fromkeys((aten.clone, aten.to, aten.dropout, aten.reshape, aten.flatten, aten.contiguous), 1),
    aten.sigmoid: 0.25,
    aten.sigmoid_: 0.25,
    aten.softmax: 0.5,
    aten.log_softmax: 2,
    aten.gelu: 1.13,
    aten.silu: 1.1,
}
_SUMS = (aten.add, aten.sub)


class Sums:
    """Records, while a graph runs, what rounding errors of its last products come to in its outputs.

    Of a product with the terms a_k w_k and the bias b it is max(|b| + sum |a_k w_k|), since a sum's rounding error is
    proportional to that whatever its order, and however far the terms cancel (N. Higham, Accuracy and Stability of
    Numerical Algorithms, section 4.2). Operators behind the product that change no value by more than their input's
    change, or by a known factor, carry it on; what goes through others is not counted.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._results = list(pytree.tree_leaves(graph.output_node().args[0]))
        self._needed: set[fx.Node] = set()
        self._largest: dict[fx.Node, float] = {}
        waiting = [node for node in self._results if isinstance(node, fx.Node)]
        while waiting:
            node = waiting.pop()
            if node not in self._needed and (_calls(node, _PRODUCTS) or _factor(node) is not None):
                self._needed.add(node)
                waiting += [] if _calls(node, _PRODUCTS) else node.all_input_nodes

    def record(self, node: fx.Node, env: dict[fx.Node, Any]) -> None:
        """After `node` was run, `env` holding the values of its arguments."""
        if node not in self._needed:
            return
        if _calls(node, _PRODUCTS):
            self._largest[node] = _largest_sum(node, env)
            return
        before = [self._largest.get(arg, 0.0) for arg in node.all_input_nodes]
        combined = sum(before) if _calls(node, _SUMS) else max(before, default=0.0)
        factor = _batch_norm_factor(node, env) if _calls(node, (aten.batch_norm,)) else _factor(node) or 0.0
        self._largest[node] = factor * combined

    def outputs(self) -> list[float]:
        """For every output of the graph; 0 where there is none."""
        return [self._largest.get(node, 0.0) if isinstance(node, fx.Node) else 0.0 for node in self._results]


def _calls(node: fx.Node, packets: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in packets


def _factor(node: fx.Node) -> float | None:
    """How far the node's result changes for its arguments' change; None where that is not known."""
    if node.target is operator.getitem:
        return 1.0
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    is_view = not schema.is_mutable and any(result.alias_info is not None for result in schema.returns)
    if is_view:
        return 1.0
    if _calls(node, (aten.batch_norm,)):
        return None if argument(node, "training") else 1.0
    if _calls(node, _SUMS):
        return 1.0 if node.kwargs.get("alpha", 1) == 1 else None
    return _LIPSCHITZ.get(node.target.overloadpacket)


def _batch_norm_factor(node: fx.Node, env: dict[fx.Node, Any]) -> float:
    weight, variance = (argument(node, name) for name in ("weight", "running_var"))
    scale = (env[variance] + argument(node, "eps")).rsqrt()
    scale = scale if weight is None else scale * env[weight].abs()
    return float(scale.max()) if scale.numel() else 0.0


def _largest_sum(node: fx.Node, env: dict[fx.Node, Any]) -> float:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
    magnitudes = pytree.tree_map_only(torch.Tensor, torch.abs, (args, kwargs))
    sums = node.target(*magnitudes[0], **magnitudes[1])  # type: ignore[operator]
    finite = sums[sums.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0
