"""Other ways to write a linear layer become one: `x @ W + b`, addmm, a bias that is added behind."""

import torch
from torch import fx

from fastgraph.rewrite.rule import Facts, Match, Rule, argument, aten, calls, make, only_user, value

_LINEAR = aten.linear.default
_PRODUCTS = (aten.matmul.default, aten.mm.default)


def _is_vector(node: object, linear: fx.Node) -> bool:
    """Whether `node` is a bias for the result of `linear`: one value a feature, in its dtype."""
    bias, result = value(node), value(linear)
    return (
        isinstance(bias, torch.Tensor)
        and bias.dim() == 1
        and bias.dtype == result.dtype
        and bias.shape[0] == result.shape[-1]
    )


class Product:
    """x @ W, W [in_features, out_features] the same in every call, is linear(x, W^T)."""

    name = "linear"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, *_PRODUCTS, aten.addmm.default):
            return None
        bias, weight = (node.args[0] if calls(node, aten.addmm.default) else None), node.args[-1]
        return Match([node], {"bias": bias}, self._refusal(node, bias, weight, facts))

    def _refusal(self, node: fx.Node, bias: object, weight: object, facts: Facts) -> str | None:
        if reason := facts.no_kernel(node) or facts.varies([weight, bias]):
            return reason
        if value(weight).dim() != 2:
            return f"its second operand has {value(weight).dim()} dimensions, not 2"
        if bias is not None and not _is_vector(bias, node):
            return "what it adds is no bias"
        if bias is not None and (argument(node, "beta"), argument(node, "alpha")) != (1, 1):
            return "it scales what it adds"
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        node = match.nodes[0]
        source, weight = node.args[-2:]
        return graph.call_function(_LINEAR, (source, make(graph, aten.t.default, weight), match.parts["bias"]))


class Bias:
    """linear(x, W) + b, b [out_features] the same in every call, is linear(x, W, b)."""

    name = "bias"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, aten.add.Tensor) or argument(node, "alpha") != 1:
            return None
        for linear, bias in (node.args[:2], node.args[1::-1]):
            if not calls(linear, _LINEAR) or not _is_vector(bias, linear):  # type: ignore[arg-type]
                continue
            assert isinstance(linear, fx.Node)
            if argument(linear, "bias") is None and facts.varies([bias]) is None and only_user(linear) is node:
                return Match([linear, node], {"bias": bias})
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        linear = match.nodes[0]
        return graph.call_function(_LINEAR, (*linear.args[:2], match.parts["bias"]))


RULES: list[Rule] = [Product(), Bias()]
