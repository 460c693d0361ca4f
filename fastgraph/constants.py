"""What of a graph depends on parameters and buffers alone, and so has to be computed only when they change."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import Aliases, is_mutation
from fastgraph.kernels.weights import has_version


def constant_nodes(
    graph: fx.Graph, aliases: Aliases | None = None, roots: Collection[fx.Node] | None = None
) -> set[fx.Node]:
    """Parameters and buffers that the graph does not write to, and what is computed from them alone.

    Left out: what the graph writes to through any alias, and computed values whose memory leaves the graph, since the
    caller could write into them. `roots` are the nodes that are given; None: the graph's get_attr tensors.
    """
    aliases = Aliases(graph) if aliases is None else aliases
    if roots is None:
        roots = [n for n in graph.find_nodes(op="get_attr") if isinstance(n.meta.get("val"), torch.Tensor)]
    constants = {node for node in roots if not aliases.writers(node)}
    if len(constants) == 0:
        return constants
    for node in graph.nodes:
        inputs = node.all_input_nodes if node.op == "call_function" else []
        computed = inputs and all(arg in constants for arg in inputs) and _is_pure(node)
        if computed and not aliases.writers(node) and not aliases.leaves(node):
            constants.add(node)
    return constants


def unversioned_nodes(
    graph: fx.Graph, constants: Collection[fx.Node], tensor_of: Callable[[fx.Node], object]
) -> set[fx.Node]:
    """Of `constants`, parameters and buffers whose change could not be seen, and what is computed from them.

    Those are the ones made in inference_mode: they are read anew in each call. `tensor_of` finds the tensor of a
    get_attr node.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in constants:
            continue
        tensor = tensor_of(node) if node.op == "get_attr" else None
        if (isinstance(tensor, torch.Tensor) and not has_version(tensor)) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def fold(value: Any, values: dict[fx.Node, Any]) -> Any:
    """`value` with the values of the nodes in it: those in `values`, and what is computed from them, once, into it."""

    def value_of(node: fx.Node) -> Any:
        if node not in values:
            args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[node]

    with torch.inference_mode(False), torch.no_grad():  # what is made in it has no version, and is not packed
        return fx.map_arg(value, value_of)


def _is_pure(node: fx.Node) -> bool:
    """A function of the tensors that go in: it writes to none, and draws no random numbers."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and not is_mutation(node)
        and torch.Tag.nondeterministic_seeded not in target.tags
        and isinstance(node.meta.get("val"), torch.Tensor)
    )
