"""Chains of Linear layers and activations become one `fastgraph::mlp`."""

from typing import Any

from torch import fx

from fastgraph.kernels.library import Op
from fastgraph.kernels.mlp.op import LAST_ONLY, MAX_ACTIVATIONS
from fastgraph.rewrite.rule import Facts, Match, Rule, argument, aten, calls, only_user, value

LINEAR = aten.linear.default
OP = Op.named("mlp").target
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


def weights_of(linear: fx.Node) -> list[Any]:
    """Weight and bias of a linear layer."""
    return [linear.args[1], argument(linear, "bias")]


class Mlp:
    """linear, activation, linear, activation ... , each used by the next one only."""

    name = "mlp"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, LINEAR):
            return None
        if reason := facts.no_kernel(node) or facts.varies(weights_of(node)):
            return Match([node], reason=reason)
        nodes, layers = [node], [(node, list[str]())]
        while (user := only_user(nodes[-1])) is not None and facts.barrier([*nodes, user]) is None:
            names = layers[-1][1]
            if names and names[-1] in LAST_ONLY:
                break
            if calls(user, LINEAR) and user.args[0] is nodes[-1] and facts.varies(weights_of(user)) is None:
                layers.append((user, []))
            else:
                activation, _ = activation_of(user)
                if activation is None or len(names) == MAX_ACTIVATIONS:
                    break
                names.append(activation)
            nodes.append(user)
        return Match(nodes, {"layers": layers})

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        layers = match.parts["layers"]
        weights, biases = map(list, zip(*(weights_of(linear) for linear, _ in layers), strict=True))
        activations: list[Any] = ["+".join(names) or "none" for _, names in layers]
        return graph.call_function(OP, (match.nodes[0].args[0], weights, biases, activations))


class Activation:
    """Only says why an activation is not part of a chain."""

    name = "mlp"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        activation, reason = activation_of(node) if node.op == "call_function" else (None, None)
        if activation is None and reason is None:
            return None
        return Match([node], reason=self._refusal(node, reason, facts))

    def _refusal(self, node: fx.Node, reason: str | None, facts: Facts) -> str:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not calls(source, OP):
            if calls(source, LINEAR):
                return "it follows a linear layer that is in no chain"
            ends = calls(source, *_ELEMENTWISE, *_SOFTMAX, aten.gelu.default)
            return "it follows an activation that is in no chain" if ends else "it does not follow a linear layer"
        if only_user(source) is not node:
            return f"{source.name} is used elsewhere too"
        last = source.args[3][-1].split("+")  # type: ignore[index,union-attr]
        if last[-1] in LAST_ONLY:
            return f"{last[-1]} ends a chain"
        full = f"a layer takes {MAX_ACTIVATIONS} activations"
        return reason or facts.barrier([source, node]) or full

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        raise AssertionError("every match of this rule is a refusal")


RULES: list[Rule] = [Mlp(), Activation()]
