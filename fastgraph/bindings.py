"""ATen operators by torch's own functions, which take the same arguments and cost a call about 1 us less.

An `OpOverload` parses its arguments by its schema, generically; torch's functions have a parser each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten, nn = torch.ops.aten, torch._C._nn

# Whose arguments agree with the operator's schema in order and by name.
BINDINGS: dict[Any, Callable[..., Any]] = {
    aten.adaptive_avg_pool2d.default: nn.adaptive_avg_pool2d,
    aten.add.Tensor: torch.add,
    aten.avg_pool2d.default: nn.avg_pool2d,
    aten.batch_norm.default: torch.batch_norm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.conv1d.default: torch.conv1d,
    aten.conv2d.default: torch.conv2d,
    aten.div.Tensor: torch.div,
    aten.embedding.default: torch.embedding,
    aten.flatten.using_ints: torch.flatten,
    aten.gelu.default: nn.gelu,
    aten.gru.input: torch.gru,
    aten.hardswish.default: nn.hardswish,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: nn.linear,
    aten.lstm.input: torch.lstm,
    aten.matmul.default: torch.matmul,
    aten.max_pool2d.default: torch.max_pool2d,
    aten.mul.Tensor: torch.mul,
    aten.permute.default: torch.permute,
    aten.relu.default: torch.relu,
    aten.relu_.default: torch.relu_,
    aten.reshape.default: torch.reshape,
    aten.scaled_dot_product_attention.default: nn.scaled_dot_product_attention,
    aten.select.int: torch.select,
    aten.sigmoid.default: torch.sigmoid,
    aten.silu.default: nn.silu,
    aten.softmax.int: torch.softmax,
    aten.sub.Tensor: torch.sub,
    aten.sym_size.int: torch.Tensor.size,
    aten.tanh.default: torch.tanh,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: torch.Tensor.view,
    aten.zeros.default: torch.zeros,
}


def bound(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph that calls torch's functions where there is one."""
    copy = fx.Graph(owning_module=graph.owning_module)
    copy.output(copy.graph_copy(graph, {}))
    for node in copy.nodes:
        if node.op == "call_function":
            node.target = BINDINGS.get(node.target, node.target)
    return copy
