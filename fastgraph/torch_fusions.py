"""Finds fused ops in a graph of torch functions and methods, as torch.compile hands it to a backend.

Regions of the graph are traced to ATen operators and rewritten. Only what the fused ops stand for is then taken out of
the torch graph: all other nodes stay as they are, so that they compute, alias and raise as in eager.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastgraph.aliases import tensors
from fastgraph.kernels.library import Op
from fastgraph.rewrite import rewrite
from fastgraph.rewrite.rule import origins
from fastgraph.torch_trace import Traced, storages, trace_all

logger = logging.getLogger(__name__)
# They change what was recorded for the nodes before them: sizes, or whether gradients are wanted.
_CHANGE_RECORDS = (
    *("swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "t_", "transpose_"),
    *("as_strided_", "resize_", "resize_as_", "set_", "detach_"),
)
_WEIGHT = "fastgraph_weight_"  # attributes of an ATen graph that are placeholders of the torch graph


@dataclass
class Fusion:
    """A fused op in the place of nodes of a torch graph.

    op(input, *arguments) is the value of `place`. `arguments` hold nodes of an ATen graph that depend on weights
    alone: its attributes, which are placeholders of the torch graph, as `weights` has them.
    """

    op: Op
    input: fx.Node
    arguments: tuple[Any, ...]
    weights: dict[fx.Node, fx.Node]
    place: fx.Node
    replaced: set[fx.Node]  # `place` and what only it needs
    renamed: set[fx.Node]  # those that are its value under another name, after a write in place
    grads: bool | None  # whether gradients are on there; None: as in the call


@dataclass
class Fusions:
    """What was found in a graph. `written`: the inputs that the graph writes to."""

    found: list[Fusion]
    pure: set[fx.Node]  # nodes that are known to write nothing
    written: list[fx.Node]


def find(graph: fx.Graph) -> Fusions:
    """The fused ops of a torch graph."""
    inputs = list(graph.find_nodes(op="placeholder"))
    examples = [node.meta.get("example_value") for node in inputs]
    fake_mode = next((value.fake_mode for value in examples if isinstance(value, FakeTensor)), None)
    if fake_mode is None or not any(map(_is_weight, inputs)) or any(map(_changes_records, graph.nodes)):
        return Fusions([], set(), [])
    with tracing(None):  # dynamo has set up another fake mode there, for backends that trace from the real inputs
        return _find(graph, inputs, fake_mode)


def _find(graph: fx.Graph, inputs: list[fx.Node], fake_mode: FakeTensorMode) -> Fusions:
    traced, foreign = trace_all(graph, fake_mode)
    touched = {s for node in foreign for arg in node.all_input_nodes for s in storages(arg)}
    touched |= {s for region in traced for s in region.written_storages()}
    weights = {node for node in inputs if _is_weight(node) and not storages(node) & touched}
    found = [f for region in traced if not region.region.autocast for f in _in_region(region, weights)]
    pure = {node for region in traced for node in region.pure()}
    return Fusions(found, pure, [node for node in inputs if storages(node) & touched])


def _is_weight(node: fx.Node) -> bool:
    """Whether an input is a parameter, or a tensor that a module keeps: the same in every call."""
    kept = "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})
    value = node.meta.get("example_value")
    return isinstance(value, torch.nn.Parameter) or (kept and isinstance(value, torch.Tensor))


def _changes_records(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name.partition(".")[0] in _CHANGE_RECORDS


def _in_region(traced: Traced, weights: set[fx.Node]) -> Iterator[Fusion]:
    inputs = _as_attributes(traced, weights)
    before = {node.name: place for place, node in enumerate(traced.graph.nodes)}
    try:
        rewritten = rewrite(traced.graph_module).graph
    except Exception:  # rules may ask what cannot be known of sizes that depend on data
        logger.info("a region of the graph stays as it is", exc_info=True)
        return
    for node in rewritten.nodes:
        op = Op.of(node.target)
        if op is not None and (fusion := _fusion(op, node, traced, before)) is not None:
            fusion.weights = {node: inputs[str(node.target)] for node in _attributes(fusion.arguments)}
            yield fusion


def _as_attributes(traced: Traced, weights: set[fx.Node]) -> dict[str, fx.Node]:
    """Makes attributes of the placeholders that are weights, for rules that compute with constants."""
    attributes = {}
    for place, owner in zip(traced.graph.find_nodes(op="placeholder"), traced.given, strict=True):
        if owner in weights:
            place.op, place.target, place.args = "get_attr", f"{_WEIGHT}{owner.name}", ()
            setattr(traced.graph_module, place.target, place.meta["val"])
            attributes[place.target] = owner
    return attributes


def _fusion(op: Op, node: fx.Node, traced: Traced, before: dict[str, int]) -> Fusion | None:
    """The fused ATen `node` as one in the torch graph; None where it does not stand for whole torch nodes."""
    input, *arguments = node.args
    if not isinstance(input, fx.Node) or not all(_is_constant(a) for a in node.all_input_nodes if a is not input):
        return None
    own = origins([node])
    source, place = (_value_of(n, traced, before) for n in (input, node))
    replaced = {traced.owner[name] for name in own if name in traced.owner}
    if source is None or place is None or place not in replaced or source in replaced:
        return None
    others = {name for n in node.graph.nodes if n is not node for name in origins([n])} - set(own)
    partly = any(traced.owner.get(name) in replaced for name in others)
    order = {n: i for i, n in enumerate(place.graph.nodes)}
    renamed = {n for n in replaced if traced.results[n] is traced.results[place]} - {place}
    leaving = [(n, user) for n in replaced - {place} for user in n.users if user not in replaced]
    fits = all(n in renamed and order[user] > order[place] for n, user in leaving)
    if partly or not fits or order[source] >= order[place] or _wants_gradients(source, traced):
        return None
    return Fusion(op, source, tuple(arguments), {}, place, replaced, renamed, traced.region.grads)


def _value_of(node: fx.Node, traced: Traced, before: dict[str, int]) -> fx.Node | None:
    """The torch node that has the value of an ATen node: what a chain of replaced nodes computes is its last one's."""
    own = [name for name in origins([node]) if name in before]
    return traced.made.get(max(own, key=lambda name: before[name])) if own else None


def _is_constant(node: fx.Node) -> bool:
    """Whether a node depends on weights alone."""
    if node.op == "get_attr":
        return str(node.target).startswith(_WEIGHT)
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


def _wants_gradients(source: fx.Node, traced: Traced) -> bool:
    """Whether the input of a fused op had a history, or wanted one, when dynamo ran the code."""
    is_on = torch.is_grad_enabled() if traced.region.grads is None else traced.region.grads
    return is_on and any(t.requires_grad for t in tensors(source.meta.get("example_value")))


def _attributes(arguments: Any) -> Iterator[fx.Node]:
    """The weights that a fused op's arguments are computed from."""
    nodes: list[fx.Node] = []
    fx.map_arg(arguments, nodes.append)
    while nodes:
        node = nodes.pop()
        if node.op == "get_attr":
            yield node
        nodes += node.all_input_nodes


def fused_graph(graph: fx.Graph, fusions: Sequence[Fusion], pure: set[fx.Node]) -> fx.Graph:
    """The torch graph with these fused ops as calls of `fused_0`, `fused_1`, ..., each of one tensor."""
    at = {fusion.place: i for i, fusion in enumerate(fusions)}
    skipped = _needless({node for fusion in fusions for node in fusion.replaced}, fusions, graph, pure)
    result, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in at:
            fusion = fusions[at[node]]
            mapping[node] = result.call_module(f"fused_{at[node]}", (mapping[fusion.input],))
            mapping.update(dict.fromkeys(fusion.renamed, mapping[node]))
        elif node not in skipped:
            mapping[node] = result.node_copy(node, lambda n: mapping[n])
    return result


def _needless(replaced: set[fx.Node], fusions: Sequence[Fusion], graph: fx.Graph, pure: set[fx.Node]) -> set[fx.Node]:
    """What is replaced, and what was computed for it alone (sizes of a view, a transposed weight)."""
    used = {fusion.input for fusion in fusions}
    needless = set(replaced)
    for node in reversed(graph.nodes):
        if node.users and node in pure and node not in used and all(user in needless for user in node.users):
            needless.add(node)
    return needless
