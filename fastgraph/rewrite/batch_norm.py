"""Batch-norm in eval mode goes into the weights of the layer before it."""

import torch
from torch import fx

from fastgraph.rewrite.rule import UNVERSIONED, Facts, Match, Rule, argument, aten, calls, make, only_user, value

_CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_LINEAR = aten.linear.default


class BatchNorm:
    """batch_norm(conv(x)) or batch_norm(linear(x)) in eval mode is the same operator with other weights.

    scale = weight / sqrt(running_var + eps); W' = W scale; b' = (b - running_mean) scale + bias, all in float64 and
    rounded once to the dtype of W. The new weights are nodes of the graph, so that they follow the old ones and
    gradients flow through them.
    """

    name = "batch_norm"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, aten.batch_norm.default):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return Match([source, node], reason=self._refusal(source, node, facts))

    def _refusal(self, source: fx.Node, node: fx.Node, facts: Facts) -> str | None:
        if argument(node, "training"):
            return "it is in training mode"
        if not calls(source, *_CONVOLUTIONS, *_TRANSPOSED, _LINEAR):
            return "it does not follow a convolution or a linear layer"
        if only_user(source) is not node:
            return f"{source.name} is used elsewhere too"
        if argument(node, "running_mean") is None or argument(node, "running_var") is None:
            return "it has no running statistics"
        if value(source).dim() != value(source.args[1]).dim():
            if calls(source, _LINEAR):
                return "its channels are not the linear layer's features"
            return "its channels are not the convolution's: the input has no batch axis"
        if calls(source, *_TRANSPOSED) and argument(source, "groups") != 1:
            return f"it follows a transposed convolution with groups={argument(source, 'groups')}"
        if not value(source).is_floating_point():
            return f"dtype {value(source).dtype} is not floating point"
        constants = [*source.args[1:3], *node.args[1:5]]
        if any(isinstance(c, fx.Node) and c not in facts.constants for c in constants):
            return "weights or statistics are inputs of the graph or vary: folding them would cost time in every call"
        if not facts.unversioned.isdisjoint(c for c in constants if isinstance(c, fx.Node)):
            return UNVERSIONED
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        source, node = match.nodes
        weight, bias = source.args[1], argument(source, "bias")
        gamma, beta, mean, variance = node.args[1:5]
        # A float64 operand makes the result float64: what is fp32 beside it is widened exactly.
        mean, variance = (make(graph, aten.to.dtype, arg, torch.float64) for arg in (mean, variance))
        scale = make(graph, aten.rsqrt.default, make(graph, aten.add.Scalar, variance, argument(node, "eps")))
        if gamma is not None:
            scale = make(graph, aten.mul.Tensor, gamma, scale)
        ones = [1] * (value(weight).dim() - 2)  # over the kernel's sizes
        shape = [1, -1, *ones] if calls(source, *_TRANSPOSED) else [-1, 1, *ones]
        new_weight = make(graph, aten.mul.Tensor, weight, make(graph, aten.reshape.default, scale, shape))
        shift = make(graph, aten.neg.default, mean) if bias is None else make(graph, aten.sub.Tensor, bias, mean)
        new_bias = make(graph, aten.mul.Tensor, shift, scale)
        if beta is not None:
            new_bias = make(graph, aten.add.Tensor, new_bias, beta)
        dtype = value(weight).dtype
        rounded = (make(graph, aten.to.dtype, new, dtype) for new in (new_weight, new_bias))
        kwargs = {name: given for name, given in source.kwargs.items() if name != "bias"}
        return graph.call_function(source.target, (source.args[0], *rounded, *source.args[3:]), kwargs)  # type: ignore[arg-type]


RULES: list[Rule] = [BatchNorm()]
