"""A convolution, its pool and the MLP of the pooled rows as a loop over blocks of rows (loop tiling).

Operator after operator, the convolution's whole result goes to memory and comes back. Block after block it stays in the
cache, which onnxruntime does not do by itself. `Net` on 720x480 runs 1.12 to 1.22, 1.37 to 1.39 and 1.09 to 1.26 times
as fast as the plain export at batches 1, 4 and 16 (onnxruntime 1.31, AVX-512, one thread), and 1.14 to 1.18 at batch 1
on two threads (AVX2); on two threads of another processor 0.90, so `to_onnx` measures before it writes one. Without the
loop it is 0.95 to 1.00 times: onnxruntime makes a ReLU part of the convolution before it, but not of a pool. Rejected:
fc2 as a product with a vector (0.86 times), the linear layers as 1x1 convolutions (0.55).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

CACHE_BYTES = 3 << 20  # of the convolution's result in one block, over the whole batch
LEAST_ROWS = 6  # after the pool in one block
TWICE = 12  # at most one in so many rows of the convolution is computed twice, at the blocks' borders
COPIED = 4  # each block copies the results of those before it: in all at most one value for so many of the convolution
_ROW_WISE = ("Gemm", "Relu", "Sigmoid", "Tanh", "Gelu")


@dataclass(frozen=True)
class _Window:
    """What a convolution or a pool does along one axis."""

    field: int  # places that one result sees
    step: int  # places to the next result
    padded: bool = False

    def count(self, size: int) -> int:
        """Results of ``size`` places."""
        return (size - self.field) // self.step + 1

    def behind(self, before: _Window) -> _Window:
        """This one and the one before it as one."""
        field = (self.field - 1) * before.step + before.field
        return _Window(field, self.step * before.step, self.padded or before.padded)


@dataclass(frozen=True)
class _Chain:
    """From the convolution's input ``x`` [B, C, H, W] through ``pooled`` to ``y`` [rows, out_features]."""

    x: ir.Value
    pooled: ir.Value
    y: ir.Value
    channels: int
    in_features: int
    out_features: int
    conv: tuple[_Window, _Window]  # along height and width
    pool: tuple[_Window, _Window]

    @property
    def both(self) -> tuple[_Window, _Window]:
        """Convolution and pool as one, along height and width."""
        return self.pool[0].behind(self.conv[0]), self.pool[1].behind(self.conv[1])

    @property
    def least_rows(self) -> int:
        """Pooled rows of a block, however large the batch."""
        again = max(0, self.pool[0].field - self.pool[0].step)
        return max(LEAST_ROWS, -(-TWICE * again // self.pool[0].step))

    def rows(self, height: int, width: int) -> int:
        """Pooled rows of a block for one image; 0 where it is in the cache as a whole, or blocks do not pay."""
        high, wide = (window.count(size) for window, size in zip(self.conv, (height, width), strict=True))
        rows = CACHE_BYTES // (4 * self.channels * wide * self.pool[0].step)
        pooled = self.both[0].count(height)
        copied = pooled * self.out_features * (pooled // self.least_rows) // 2
        return rows if self.least_rows <= rows <= pooled // 2 and COPIED * copied <= high * wide else 0


def in_row_blocks(model: ir.Model, example: Mapping[str, Sequence[int]]) -> bool:
    """Rewrites, in place, each such chain that begins at an input of which the example fills two blocks; is there any?

    The loop runs for the widths of which each pooled row is one row of the MLP. For others, whose rows are cut out of
    the pooled values wherever they end, the operators run one after the other as they did.

    Args:
        model: in which values that the chain passes on are used once.
        example: shapes by the inputs' names.
    """
    found = False
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        chain = _chain(conv)
        if chain is not None and (name := str(chain.x.name)) in example and (rows := chain.rows(*example[name][2:])):
            _replace(model.graph, chain, rows, f"{conv.outputs[0].name}_rows_")
            found = True
    return found


def _chain(conv: ir.Node) -> _Chain | None:
    """The chain that begins at ``conv``; None where there is none, or it cannot be cut into rows."""
    x, kernel = conv.inputs[0], _constant(conv, 1)
    if x is None or not x.is_graph_input() or kernel is None or kernel.ndim != 4:
        return None
    nodes = list(_followers(conv))
    pools, reshapes, gemms = (
        [node for node in nodes if node.op_type == kind] for kind in ("MaxPool", "Reshape", "Gemm")
    )
    if len(pools) != 1 or not gemms or pools[0].attributes.get_int("ceil_mode"):
        return None
    windows = [(_window(node, 0), _window(node, 1)) for node in (conv, pools[0])]
    target, out_features = _constant(reshapes[0], 1), gemms[-1].outputs[0].shape[1]  # type: ignore[index]
    if any(one.padded for pair in windows for one in pair) or not isinstance(out_features, int):
        return None
    if target is None or len(target) != 2 or target[0] != -1:
        return None
    sizes = kernel.shape[0], int(target[1]), out_features
    return _Chain(x, reshapes[0].inputs[0], nodes[-1].outputs[0], *sizes, *windows)  # type: ignore[arg-type]


def _followers(conv: ir.Node) -> Iterator[ir.Node]:
    """``conv``, then each node that alone uses the result of the one before: pool, reshape, what works row by row."""
    node = conv
    allowed: tuple[str, ...] = ("MaxPool", "Relu", "Reshape")
    while True:
        yield node
        allowed = _ROW_WISE if node.op_type == "Reshape" else allowed
        users = list(node.outputs[0].uses())
        if node.outputs[0].is_graph_output() or len(users) != 1 or users[0].idx != 0:
            return
        node = users[0].node
        if node.op_type not in allowed or not _same_for_all_rows(node):
            return


def _same_for_all_rows(node: ir.Node) -> bool:
    """Whether what the node takes besides its input is constant, and not one row of it for each row of the input."""
    bias = _constant(node, 2) if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if node.attributes.get_int("transA", 0) or (bias is not None and bias.ndim == 2 and bias.shape[0] != 1):
        return False
    return all(value is None or value.const_value is not None for value in node.inputs[1:])


def _window(node: ir.Node, axis: int) -> _Window:
    """The node's along height (0) or width (1)."""
    ints = lambda name: node.attributes.get_ints(name)  # noqa: E731
    kernel, pads = ints("kernel_shape"), ints("pads")
    assert kernel is not None  # torch.onnx always writes it
    dilation, stride = (ints(name) or (1, 1) for name in ("dilations", "strides"))
    return _Window(dilation[axis] * (kernel[axis] - 1) + 1, stride[axis], any(pads or ()))


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index]
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _replace(graph: ir.Graph, chain: _Chain, rows: int, prefix: str) -> None:
    """The loop where the width allows it, else the chain itself: an If in the chain's place."""
    window = chain.both[1]
    narrowest = window.field + window.step * (chain.in_features - 1)
    build = _Builder(prefix)
    size = build("Shape", chain.x, start=3, end=4)
    fits = build(
        "And", build("GreaterOrEqual", size, narrowest), build("LessOrEqual", size, narrowest + window.step - 1)
    )
    branches = {"then_branch": _loop(graph, chain, rows), "else_branch": _whole(graph, chain)}
    y = build("If", build("Squeeze", fits), **branches)
    y.type, y.shape = chain.y.type, chain.y.shape
    old = [chain.y.producer()]
    while old[-1].inputs[0] is not chain.x:  # type: ignore[union-attr]
        old.append(old[-1].inputs[0].producer())  # type: ignore[union-attr]
    name, chain.y.name = chain.y.name, "replaced"
    chain.y.replace_all_uses_with(y, replace_graph_outputs=True)
    y.name = name
    graph.insert_before(old[-1], build.nodes)  # type: ignore[arg-type]
    graph.remove(old, safe=True)  # type: ignore[arg-type]
    build.register(graph)
    for unused in [value for value in graph.initializers.values() if not value.uses()]:
        del graph.initializers[str(unused.name)]


def _whole(graph: ir.Graph, chain: _Chain) -> ir.Graph:
    """The chain as it was, with the weights outside."""
    part, _ = _copy(graph, chain, "whole_", chain.x)
    for name, value in list(part.initializers.items()):
        value.replace_all_uses_with(graph.initializers[name.removeprefix("whole_")])
        del part.initializers[name]
    return part


def _loop(graph: ir.Graph, chain: _Chain, rows: int) -> ir.Graph:
    """The blocks' results [B, C, rows, out_features], one behind the other."""
    build = _Builder("blocks_")
    field, step = chain.both[0].field, chain.both[0].step
    batch, height = build("Shape", chain.x, start=0, end=1), build("Shape", chain.x, start=2, end=3)
    each = build("Max", build("Div", rows, build("Max", batch, 1)), chain.least_rows)
    pooled = build("Add", build("Div", build("Sub", height, field), step), 1)
    count = build("Div", build("Sub", build("Add", pooled, each), 1), each)
    count = build("Max", count, 1)  # an input too small for the convolution still comes to it, and is refused there
    stride = build("Mul", each, step)
    window = build("Add", stride, field - step)
    empty = build("Concat", batch, [chain.channels, 0, chain.out_features], axis=0)
    nothing = build("ConstantOfShape", empty, value=ir.tensor(np.zeros(1, chain.x.dtype.numpy())))  # type: ignore[union-attr]
    every = build("Loop", build("Squeeze", count), None, nothing, body=_block(graph, chain, stride, window))
    y = build("Reshape", every, [-1, chain.out_features])
    made = ir.Graph([], [y], nodes=build.nodes, name="blocks")
    build.register(made)
    return made


def _block(graph: ir.Graph, chain: _Chain, stride: ir.Value, window: ir.Value) -> ir.Graph:
    """One block: ``window`` rows of the input from ``number * stride`` on; the last one has what is left.

    It has weights of its own: onnxruntime arranges weights ahead of time only in the graph in which they are used.
    """
    head, tail = _Builder("block_head_"), _Builder("block_tail_")
    number, more = ir.val("block_number", ir.DataType.INT64, []), ir.val("block_more", ir.DataType.BOOL, [])
    before = ir.val("block_before", chain.x.dtype, [None, chain.channels, None, chain.out_features])
    first = head("Mul", number, stride)
    x = head("Slice", chain.x, first, head("Add", first, window), [2])
    body, pooled = _copy(graph, chain, "block_", x)
    shape = tail("Concat", tail("Shape", pooled, start=0, end=3), chain.out_features, axis=0)
    y = tail("Reshape", body.outputs[0], shape, allowzero=1)  # of no images come no rows
    outputs = [tail("Identity", more), tail("Concat", before, y, axis=2)]
    body.insert_before(body[0], head.nodes)
    body.extend(tail.nodes)
    for build in (head, tail):
        build.register(body)
    body.inputs.extend([number, more, before])
    body.outputs[:] = outputs
    return body


def _copy(graph: ir.Graph, chain: _Chain, prefix: str, x: ir.Value) -> tuple[ir.Graph, ir.Value]:
    """The chain once more, of ``x``, with names and weights of its own; and its pooled value."""
    part = ir.convenience.extract(graph, [chain.x], [chain.y, chain.pooled])
    (inner,) = part.inputs
    part.inputs.clear()
    inner.replace_all_uses_with(x)
    pooled = part.outputs.pop()
    part.name = prefix
    for value in [*part.initializers.values(), *(value for node in part for value in node.outputs)]:
        value.name = prefix + str(value.name)
        if not value.is_initializer():
            value.shape = None  # it is that of the whole input
    for node in part:
        node.name = prefix + str(node.name)
    return part, pooled


class _Builder:
    """Makes nodes; numbers among the arguments become constants, of one axis."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._prefix = prefix
        self._constants: dict[str, ir.Value] = {}

    def __call__(self, operator: str, *inputs: ir.Value | int | list[int] | None, **attributes: Any) -> ir.Value:
        """The result of a new node."""
        values = [self._value(one) if isinstance(one, int | list) else one for one in inputs]
        name = f"{self._prefix}{operator.lower()}_{len(self.nodes)}"
        node = ir.node(operator, values, attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def register(self, graph: ir.Graph) -> None:
        """Puts the constants into the graph that has the nodes."""
        for constant in self._constants.values():
            graph.register_initializer(constant)

    def _value(self, numbers: int | list[int]) -> ir.Value:
        array = np.array(numbers, np.int64).reshape(-1)
        name = self._prefix + "_".join(map(str, array)).replace("-", "minus")
        if name not in self._constants:
            self._constants[name] = ir.val(name, const_value=ir.tensor(array, name=name))
        return self._constants[name]
