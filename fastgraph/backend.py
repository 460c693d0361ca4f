"""`torch.compile(model, backend="fastgraph")`: found by torch through the entry point in pyproject.toml."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fastgraph.rewrite import Rewritten, rewrite


def fastgraph_backend(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Rewrites the graph that torch.compile captured and runs it as it is.

    Weights are inputs here, so they are always the module's own and gradients flow; batch-norm is not folded.
    """
    return to_aten(graph_module, example_inputs).graph_module.forward


def to_aten(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Rewritten:
    """The graph of ATen operators behind torch.compile's graph, rewritten."""
    inputs = [
        _fake(node, value)
        for node, value in zip(graph_module.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
    ]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pre_dispatch.*")
        traced = make_fx(graph_module, tracing_mode="real", pre_dispatch=True, _allow_non_fake_inputs=True)(*inputs)
    return rewrite(traced)


def _fake(node: fx.Node, value: Any) -> Any:
    """The fake value that torch.compile traced with, which has the free sizes."""
    return node.meta.get("example_value", value)
