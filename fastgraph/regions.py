"""Regions of a graph in which gradients are off or on: flat, between two switches, instead of nested graphs."""

import operator
from typing import Any

import torch
from torch import fx, nn

SWITCH = torch._C._set_grad_enabled
_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled


def is_switch(node: fx.Node) -> bool:
    """Whether the node turns gradients on or off for what comes after it."""
    return node.op == "call_function" and node.target is SWITCH


def inline_grad_modes(root: nn.Module, graph: fx.Graph, mode: bool = True) -> None:
    """Replaces every region of torch.export by its operators between two switches, in place. `mode`: that outside."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _REGION:
            enabled, body, *args = node.args
            inner = root.get_submodule(str(body.target))
            results = _inline(root, graph, node, inner, args, enabled, mode)
            _replace(graph, node, results)
            if not body.users:
                graph.erase_node(body)
    graph.lint()


def _inline(
    root: nn.Module, graph: fx.Graph, node: fx.Node, inner: Any, args: list[Any], enabled: bool, mode: bool
) -> Any:
    nested = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = nested.graph_copy(inner.graph, copied)
    for old, new in copied.items():
        new.meta = dict(old.meta)
    nested.output(output)
    for get in nested.find_nodes(op="get_attr"):  # what the body has of its own
        name = f"{node.name}_{get.target}"
        setattr(root, name, getattr(inner, str(get.target)))
        get.target = name
    inline_grad_modes(root, nested, enabled)
    with graph.inserting_before(node):
        _switch(graph, enabled)
        places = dict(zip(nested.find_nodes(op="placeholder"), args, strict=True))
        for old in nested.nodes:
            if old.op not in ("placeholder", "output"):
                places[old] = graph.node_copy(old, lambda n: places[n])
        _switch(graph, mode)
    return fx.map_arg(nested.output_node().args[0], lambda n: places[n])


def _switch(graph: fx.Graph, mode: bool) -> None:
    graph.call_function(SWITCH, (mode,)).meta["val"] = None


def _replace(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    """`results`, a tuple or list of values, take the place of what is picked from `node`."""
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results[0] if isinstance(results, tuple | list) else results)
    graph.erase_node(node)


def without_switches(graph: fx.Graph) -> None:
    """Takes the switches out, in place, for calls that want no gradients."""
    for node in list(graph.nodes):
        if is_switch(node):
            graph.erase_node(node)
