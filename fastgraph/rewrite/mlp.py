"""Chains of Linear layers and activations become one `fastgraph::mlp`."""

from typing import Any

import torch
from torch import fx

from fastgraph.kernels.mlp.op import LAST_ONLY, MAX_ACTIVATIONS
from fastgraph.rewrite.rule import Match, Rule, argument, aten, calls, only_user, value

LINEAR = aten.linear.default
OP = torch.ops.fastgraph.mlp.default
_ELEMENTWISE = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
}
_SOFTMAX = {aten.softmax.int: "softmax", aten.log_softmax.int: "log_softmax"}


def activation_of(node: fx.Node) -> tuple[str | None, str | None]:
    """(activation, None) where the op has this one, (None, reason) where its form stands in the way, or two Nones."""
    if calls(node, *_ELEMENTWISE):
        return _ELEMENTWISE[node.target], None  # type: ignore[index]
    if calls(node, aten.gelu.default):
        return ("gelu_tanh" if argument(node, "approximate") == "tanh" else "gelu"), None
    if calls(node, *_SOFTMAX):
        name = _SOFTMAX[node.target]  # type: ignore[index]
        rank, dim = value(node).dim(), argument(node, "dim")
        if dim not in (-1, rank - 1):
            return None, f"{name} over dimension {dim} is not over the features"
        if argument(node, "dtype") is not None:
            return None, f"{name} changes the dtype"
        return name, None
    return None, None


class Mlp:
    """linear, activation, linear, activation ... , each used by the next one only."""

    name = "mlp"

    def match(self, node: fx.Node) -> Match | None:
        if not calls(node, LINEAR):
            return None
        if not value(node).is_floating_point():
            return Match([node], reason=f"dtype {value(node).dtype} is not floating point")
        nodes, layers = [node], [(node, list[str]())]
        tail = node
        while (user := only_user(tail)) is not None:
            names = layers[-1][1]
            if calls(user, LINEAR) and user.args[0] is tail and tail not in user.args[1:]:
                if names and names[-1] in LAST_ONLY:
                    break
                layers.append((user, []))
            else:
                activation, _ = activation_of(user)
                if activation is None or len(names) == MAX_ACTIVATIONS or (names and names[-1] in LAST_ONLY):
                    break
                names.append(activation)
            nodes.append(user)
            tail = user
        return Match(nodes, {"layers": layers})

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        layers = match.parts["layers"]
        weights = [linear.args[1] for linear, _ in layers]
        biases = [argument(linear, "bias") for linear, _ in layers]
        activations: list[Any] = ["+".join(names) or "none" for _, names in layers]
        return graph.call_function(OP, (match.nodes[0].args[0], weights, biases, activations))


class Activation:
    """Only says why an activation behind a chain stayed outside it."""

    name = "mlp"

    def match(self, node: fx.Node) -> Match | None:
        reason = activation_of(node)[1] if node.op == "call_function" else None
        return Match([node], reason=reason) if reason and calls(node.args[0], OP) else None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        raise AssertionError("every match of this rule is a refusal")


RULES: list[Rule] = [Mlp(), Activation()]
