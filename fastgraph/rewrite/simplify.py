"""Simplifications that make the fusions match and cost nothing: each is exact in real arithmetic."""

from collections.abc import Callable
from typing import Any

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
_PRODUCTS = (aten.linear.default, aten.matmul.default, aten.mm.default)
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    aten.relu_.default: _RELU,
    aten.silu_.default: aten.silu.default,
    aten.gelu_.default: aten.gelu.default,
    aten.tanh_.default: aten.tanh.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.threshold_.default: aten.threshold.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.add_.Tensor: aten.add.Tensor,
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
    """An operator written over the result of another, memory that nobody else knows, is the operator itself.

    Activations, and the addition of a bias to a product.
    """

    name = "in_place"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, *_IN_PLACE):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if calls(node, aten.add_.Tensor) and not (calls(source, *_PRODUCTS) and node.args[1] in facts.weights):
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
        return graph.call_function(_IN_PLACE[node.target], node.args, node.kwargs)  # of the same shape


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
