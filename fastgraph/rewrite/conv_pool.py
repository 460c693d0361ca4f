"""Convolution, ReLU and max-pooling become one `fastgraph::conv_pool`."""

from typing import Any

from torch import fx

from fastgraph.kernels.conv_pool.op import Geometry, is_slower, refusal
from fastgraph.kernels.library import Op
from fastgraph.rewrite.rule import Facts, Match, Rule, argument, aten, calls, only_user, value

CONV = (aten.conv2d.default, aten.conv2d.padding)
POOL = aten.max_pool2d.default
RELU = aten.relu.default
OP = Op.named("conv_pool").target


def pair(value: Any) -> list[int]:
    """One or two numbers as two."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return [numbers[0], numbers[-1]]


def conv_padding(conv: fx.Node) -> list[int] | str:
    """The convolution's padding in numbers, or why it has none: "same" may pad one side more than the other."""
    padding = argument(conv, "padding")
    if not isinstance(padding, str):
        return pair(padding)
    if padding == "valid":
        return [0, 0]
    kernel, dilation = value(conv.args[1]).shape[2:], pair(argument(conv, "dilation"))
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return "padding='same' is not symmetric here" if any(t % 2 for t in total) else [t // 2 for t in total]


def geometry_of(conv: fx.Node, pool: fx.Node) -> Geometry:
    """The op's arguments behind weight and bias, in its order; the convolution's padding may be a reason (a string)."""
    kernel = pair(argument(pool, "kernel_size"))
    padding: Any = conv_padding(conv)
    return Geometry(
        pair(argument(conv, "stride")),
        padding,
        pair(argument(conv, "dilation")),
        kernel,
        pair(argument(pool, "stride") or kernel),
        pair(argument(pool, "padding")),
        bool(argument(pool, "ceil_mode")),
    )


class ConvPool:
    """relu(max_pool2d(conv2d(x))) or max_pool2d(relu(conv2d(x))), anchored at the pool."""

    name = "conv_pool"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, POOL):
            return None
        before = node.args[0]
        assert isinstance(before, fx.Node)
        conv = before.args[0] if calls(before, RELU) else before
        if not isinstance(conv, fx.Node) or not calls(conv, *CONV):
            return Match([node], reason="it does not follow a convolution")
        after = only_user(node)
        if before is not conv:
            nodes = [conv, before, node]
        elif after is not None and calls(after, RELU):
            nodes = [conv, node, after]
        else:
            return Match([conv, node], reason="there is no ReLU between convolution and pool, or behind them")
        return Match(nodes, {"geometry": geometry_of(conv, node)}, self._refusal(nodes, node, facts))

    def _refusal(self, nodes: list[fx.Node], pool: fx.Node, facts: Facts) -> str | None:
        conv = nodes[0]
        for inner in nodes[:-1]:
            if only_user(inner) is None:
                return f"{inner.name} is used elsewhere too"
        if value(conv).dim() != 4:
            return "the input has no batch axis"
        if reason := facts.no_kernel(conv) or facts.varies([conv.args[1], argument(conv, "bias")]):
            return reason
        if argument(conv, "groups") != 1:
            return f"groups={argument(conv, 'groups')} (the kernel takes 1)"
        if pair(argument(pool, "dilation")) != [1, 1]:
            return f"pool dilation {pair(argument(pool, 'dilation'))} (the kernel takes 1)"
        geometry = geometry_of(conv, pool)
        return geometry.padding if isinstance(geometry.padding, str) else refusal(geometry) or _slower(conv)

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        conv = match.nodes[0]
        arguments = (conv.args[0], conv.args[1], argument(conv, "bias"), *match.parts["geometry"])
        return graph.call_function(OP, arguments)


def _slower(conv: fx.Node) -> str | None:
    """At the example's width; where that is computed from values, nothing is known of it."""
    weight, width = value(conv.args[1]).shape, value(conv).shape[-1]
    if not isinstance(width, int):
        if not width.node.has_hint():
            return None
        width = width.node.hint
    if value(conv).device.type == "cpu" and is_slower(weight, width):
        channels, *kernel = weight[1:]
        size = "x".join(map(str, kernel))
        where = f"{channels} input channels, a {size} kernel and rows of {width}"
        return f"convolution and pool by themselves are faster at {where}"
    return None


RULES: list[Rule] = [ConvPool()]
