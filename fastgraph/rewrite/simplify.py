"""Simplifications that make the fusions match and cost nothing: each is exact in real arithmetic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import Aliases
from fastgraph.rewrite import batch_norm
from fastgraph.rewrite.rule import Facts, Match, Rule, argument, aten, calls, make, only_user, value

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
_CLAMPS = (aten.clamp.default, aten.clamp_min.default)
_CLAMP_REASON = "its gradient where the input is 0 is 1, that of relu 0"
_NOT_NEGATIVE = (_RELU, aten.sigmoid.default, aten.softmax.int, aten._softmax.default)
_IN_PLACE_NAMES = (
    *("relu", "silu", "gelu", "tanh", "sigmoid", "threshold", "hardtanh", "hardswish", "hardsigmoid", "mish", "elu"),
    *("leaky_relu", "clamp", "clamp_min", "clamp_max", "abs", "neg", "sqrt", "rsqrt", "exp", "sin", "cos"),
)
_BINARY_NAMES = ("add", "sub", "mul", "div")
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, f"{name}_").default: getattr(aten, name).default for name in _IN_PLACE_NAMES},
    **{getattr(aten, f"{name}_").Tensor: getattr(aten, name).Tensor for name in _BINARY_NAMES},
}


class Dropout:
    """dropout(x) in eval mode is x: ATen returns its argument itself."""

    name = "dropout"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, *_DROPOUT):
            return None
        active = argument(node, "train") and argument(node, "p") != 0
        return Match([node], reason="it is in training mode" if active else None)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source = match.nodes[0].args[0]
        assert isinstance(source, fx.Node)
        return source


class InPlace:
    """An elementwise operator over the result of another, memory that nobody else knows, is the operator itself."""

    name = "in_place"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, *_IN_PLACE):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not _keeps_its_dtype(node):
            return None
        return Match([node], reason=self._refusal(source, node, facts))

    def _refusal(self, source: fx.Node, node: fx.Node, facts: Facts) -> str | None:
        if source.op != "call_function":
            return "it writes over an input or a view"
        if only_user(source) is not node:
            return f"{source.name} is used elsewhere too"
        others = [other for other in facts.aliases.sharing(source) if other is not source]
        if any(other < node for other in others if not other._erased):
            return "it writes over an input or a view"
        return facts.barrier([source, node])

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        node = match.nodes[0]
        return make(graph, _IN_PLACE[node.target], *node.args, **node.kwargs)


def _keeps_its_dtype(node: fx.Node) -> bool:
    """Whether the operator without the underscore gives the dtype of the tensor that is written over."""
    source, *others = (value(n) for n in node.all_input_nodes)
    return source.is_floating_point() and all(
        isinstance(other, torch.Tensor) and other.dtype == source.dtype and other.dim() > 0 for other in others
    )


class RedundantReLU:
    """relu of a value that is never negative (relu, sigmoid, softmax) is that value."""

    name = "redundant_relu"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        source = node.args[0] if calls(node, _RELU) else None
        if not calls(source, *_NOT_NEGATIVE):
            return None
        assert isinstance(source, fx.Node)
        return Match([node], reason=self._refusal(source, node, facts.aliases) or facts.barrier([source, node]))

    def _refusal(self, source: fx.Node, node: fx.Node, aliases: Aliases) -> str | None:
        for writer in [*aliases.writers(source), *aliases.writers(node)]:
            return f"{writer.name} writes over it or over {source.name}, which would be one tensor"
        if aliases.leaves(source) and aliases.leaves(node):
            return f"it and {source.name} are results of the module, which would be one tensor"
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source = match.nodes[0].args[0]
        assert isinstance(source, fx.Node)
        return source


class OtherReLU:
    """threshold(x, 0, 0) and hardtanh(x, 0, inf) are relu(x). clamp(x, min=0) has another gradient where x is 0."""

    name = "relu"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, *_CLAMPS, aten.threshold.default, aten.hardtanh.default):
            return None
        if not _is_relu(node) or not value(node).is_floating_point():
            return None
        return Match([node], reason=_CLAMP_REASON if calls(node, *_CLAMPS) else None)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        return graph.call_function(_RELU, (match.nodes[0].args[0],))


def _is_relu(node: fx.Node) -> bool:
    bounds = {
        aten.threshold.default: ("threshold", "value", 0),
        aten.hardtanh.default: ("min_val", "max_val", float("inf")),
        aten.clamp.default: ("min", "max", None),
        aten.clamp_min.default: ("min", "min", 0),
    }
    low, high, expected = bounds[node.target]  # type: ignore[index]
    return bool(argument(node, low) == 0 and argument(node, high) == expected)


class ReLUAfterPool:
    """max_pool2d(relu(x)) is relu(max_pool2d(x)), over fewer elements."""

    name = "relu_after_pool"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not (calls(node, _POOL) and calls(node.args[0], _RELU)):
            return None
        relu = node.args[0]
        assert isinstance(relu, fx.Node)
        reason = None if only_user(relu) is node else f"{relu.name} is used elsewhere too"
        dilation, padding = argument(node, "dilation"), argument(node, "padding")
        if reason is None and _sizes(dilation) - {1} and _sizes(padding) - {0}:
            reason = "a dilated window can lie in the padding alone, where the pool is -inf"
        return Match([relu, node], reason=reason)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        relu, pool = match.nodes
        pooled = make(graph, _POOL, relu.args[0], *pool.args[1:], **pool.kwargs)
        pooled.meta["origins"] = [pool.name]
        return graph.call_function(_RELU, (pooled,))


def _sizes(value: Any) -> set[int]:
    return set(value) if isinstance(value, list | tuple) else {value}


RULES: list[Rule] = [Dropout(), InPlace(), OtherReLU(), *batch_norm.RULES, RedundantReLU(), ReLUAfterPool()]
