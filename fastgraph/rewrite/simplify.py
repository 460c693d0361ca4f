"""Simplifications that make the fusions match and cost nothing: each is exact in real arithmetic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastgraph.rewrite.rule import Match, Rule, aten, calls, only_user, value

_RELU = aten.relu.default
_POOL = aten.max_pool2d.default
_DROPOUT = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_alpha_dropout_.default,
)
_NOT_NEGATIVE = (_RELU, aten.sigmoid.default, aten.softmax.int, aten._softmax.default)
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    aten.relu_.default: _RELU,
    aten.silu_.default: aten.silu.default,
    aten.gelu_.default: aten.gelu.default,
    aten.tanh_.default: aten.tanh.default,
    aten.sigmoid_.default: aten.sigmoid.default,
}


class Dropout:
    """dropout(x) in eval mode is x."""

    name = "dropout"

    def match(self, node: fx.Node) -> Match | None:
        if not calls(node, *_DROPOUT):
            return None
        return Match([node], reason="it is in training mode" if node.args[2] else None)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source = match.nodes[0].args[0]
        assert isinstance(source, fx.Node)
        return source


class InPlace:
    """An activation written over the result of one operator that nobody else reads is the activation itself."""

    name = "in_place"

    def match(self, node: fx.Node) -> Match | None:
        if not calls(node, *_IN_PLACE):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op != "call_function" or _is_view(source):
            return Match([node], reason="it writes over an input or a view")
        if only_user(source) is not node:
            return Match([node], reason=f"{source.name} is used elsewhere too")
        return Match([node])

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        node = match.nodes[0]
        return graph.call_function(_IN_PLACE[node.target], node.args, node.kwargs)


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


class RedundantReLU:
    """relu of a value that is never negative (relu, sigmoid, softmax) is that value."""

    name = "redundant_relu"

    def match(self, node: fx.Node) -> Match | None:
        return Match([node]) if calls(node, _RELU) and calls(node.args[0], *_NOT_NEGATIVE) else None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source = match.nodes[0].args[0]
        assert isinstance(source, fx.Node)
        return source


class ReLUAfterPool:
    """max_pool2d(relu(x)) is relu(max_pool2d(x)), over fewer elements."""

    name = "relu_after_pool"

    def match(self, node: fx.Node) -> Match | None:
        if not (calls(node, _POOL) and calls(node.args[0], _RELU)):
            return None
        relu = node.args[0]
        assert isinstance(relu, fx.Node)
        reason = None if only_user(relu) is node else f"{relu.name} is used elsewhere too"
        return Match([relu, node], reason=reason)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        relu, pool = match.nodes
        pooled = graph.call_function(_POOL, (relu.args[0], *pool.args[1:]), pool.kwargs)
        pooled.meta = {**pool.meta, "origins": [pool.name]}
        return graph.call_function(_RELU, (pooled,))


class BatchNorm:
    """batch_norm(conv(x)) or batch_norm(linear(x)) in eval mode is the same operator with other weights.

    scale = weight / sqrt(running_var + eps); W' = W scale; b' = (b - running_mean) scale + bias. The new weights are
    nodes of the graph, so that they follow the old ones and gradients flow through them.
    """

    name = "batch_norm"

    def match(self, node: fx.Node) -> Match | None:
        if not calls(node, aten.batch_norm.default):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return Match([source, node], reason=self._refusal(source, node))

    def _refusal(self, source: fx.Node, node: fx.Node) -> str | None:
        _, _, _, mean, variance, training = node.args[:6]
        if training:
            return "it is in training mode"
        if not calls(source, aten.conv2d.default, aten.linear.default):
            return "it does not follow a convolution or a linear layer"
        if only_user(source) is not node:
            return f"{source.name} is used elsewhere too"
        if mean is None or variance is None:
            return "it has no running statistics"
        if calls(source, aten.linear.default) and value(source).dim() != 2:
            return "its channels are not the linear layer's features"
        constants = [*source.args[1:3], *node.args[1:5]]
        if any(isinstance(c, fx.Node) and c.op != "get_attr" for c in constants):
            return "weights or statistics are inputs of the graph, so folding them would cost time in every call"
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source, node = match.nodes
        gamma, beta, mean, variance = node.args[1:5]
        eps = node.args[7]
        weight = source.args[1]
        bias = source.args[2] if len(source.args) > 2 else None
        fake = value(weight)

        def call(function: Callable[..., Any], *args: Any) -> fx.Node:
            made = graph.call_function(function, args)
            with fake.fake_mode, torch.no_grad():
                made.meta["val"] = function(*(value(arg) if isinstance(arg, fx.Node) else arg for arg in args))
            return made

        scale = call(aten.rsqrt.default, call(aten.add.Scalar, variance, eps))
        if gamma is not None:
            scale = call(aten.mul.Tensor, gamma, scale)
        ones = [1] * (fake.dim() - 1)  # over kernel_h and kernel_w, or in_features
        new_weight = call(aten.mul.Tensor, weight, call(aten.reshape.default, scale, [-1, *ones]))
        shifted = call(aten.neg.default, mean) if bias is None else call(aten.sub.Tensor, bias, mean)
        new_bias = call(aten.mul.Tensor, shifted, scale)
        if beta is not None:
            new_bias = call(aten.add.Tensor, new_bias, beta)
        arguments = (source.args[0], new_weight, new_bias, *source.args[3:])
        return graph.call_function(_operator(source), arguments, source.kwargs)


def _operator(node: fx.Node) -> Callable[..., Any]:
    assert not isinstance(node.target, str)
    return node.target


RULES: list[Rule] = [Dropout(), InPlace(), BatchNorm(), RedundantReLU(), ReLUAfterPool()]
