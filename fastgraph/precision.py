"""Running a graph in another dtype than the parameters have."""

import torch
from torch import fx

from fastgraph.constants import constant_nodes
from fastgraph.rewrite.rule import aten

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def cast(graph_module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Rewrites the graph in place: floating inputs and weights are cast to `dtype`, outputs back to what they were.

    The parameters stay what they are: their casts are nodes of the graph, so that they follow every change and
    gradients flow through them; what is folded into weights is folded before the cast. ValueError for a dtype that is
    not in `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: needs one of {', '.join(map(str, DTYPES))}, got {dtype}")
    graph = graph_module.graph
    constants = constant_nodes(graph)
    computed = [n for n in graph.nodes if n.op == "call_function" and n not in constants and _is_floating(n, dtype)]
    for node in list(graph.nodes):
        if _is_floating(node, dtype) and (node.op == "placeholder" or node in constants):
            _cast_for(
                graph, node, dtype, [user for user in node.users if user not in constants and user.op != "output"]
            )
    output = graph.output_node()
    for node in computed:
        before = node.meta["val"].dtype
        node.meta["val"] = node.meta["val"].to(dtype)
        if output in node.users:
            _cast_for(graph, node, before, [output])
    _drop_casts_around_fused(graph)
    graph_module.recompile()


def _drop_casts_around_fused(graph: fx.Graph) -> None:
    """A fused op on the CPU takes an fp32 input beside bf16 weights, and returns fp32 then: no casts around it."""
    for node in graph.nodes:
        if not str(node.target).startswith("fastgraph.") or node.meta["val"].device.type != "cpu":
            continue
        narrowed, users = node.args[0], list(node.users)
        if not _is_cast(narrowed, torch.bfloat16) or not all(_is_cast(user, torch.float32) for user in users):
            continue
        source = narrowed.args[0]
        if source.meta["val"].dtype != torch.float32:
            continue
        node.update_arg(0, source)
        node.meta["val"] = node.meta["val"].float()
        for user in users:
            user.replace_all_uses_with(node)
            graph.erase_node(user)
        if not narrowed.users:
            graph.erase_node(narrowed)


def _is_cast(node: fx.Node, dtype: torch.dtype) -> bool:
    return bool(node.target == aten.to.dtype and node.args[1] == dtype)


def _is_floating(node: fx.Node, dtype: torch.dtype) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype


def _cast_for(graph: fx.Graph, node: fx.Node, dtype: torch.dtype, users: list[fx.Node]) -> None:
    """Makes `users` read `node` in another dtype."""
    if not users:
        return
    with graph.inserting_after(node):
        made = graph.call_function(aten.to.dtype, (node, dtype))
    made.meta = {"val": node.meta["val"].to(dtype), "origins": []}
    for user in users:
        user.replace_input_with(node, made)
