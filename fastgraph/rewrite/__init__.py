"""Rewrites a captured graph: first simplifications, then fusions, one file a rule."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fastgraph.aliases import nested_graphs
from fastgraph.rewrite import conv_pool, conv_pool_mlp, mlp, products, simplify
from fastgraph.rewrite.rule import Facts, Match, Refusal, Rule, origins

# Each stage runs until nothing changes.
STAGES: tuple[list[Rule], ...] = (
    [*simplify.RULES, *products.RULES],
    conv_pool.RULES,
    mlp.RULES,
    conv_pool_mlp.RULES,
)
# Without the fusions: what is left are ATen operators, which other programs know too.
SIMPLIFICATIONS: tuple[list[Rule], ...] = (simplify.RULES,)


@dataclass
class Rewritten:
    """A rewritten graph, and the places where a rule was refused.

    A node carries in `meta["origins"]` the names of the eager nodes that it stands for, and in `meta["rule"]` the rule
    that made it. `nested` holds the graphs that torch.cond and other higher order operators run, by their attribute's
    name in `graph_module`.
    """

    graph_module: fx.GraphModule
    refusals: list[Refusal]
    nested: dict[str, "Rewritten"] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators and fused ops."""
        return self.graph_module.graph


def rewrite(
    graph_module: fx.GraphModule,
    stages: Sequence[list[Rule]] = STAGES,
    *,
    weights: Collection[fx.Node] | None = None,
    dtype: torch.dtype | None = None,
) -> Rewritten:
    """A copy of the graph, rewritten by the rules of `stages`; parameters are shared.

    weights: what is the same in every call, beside what depends on parameters and buffers of the graph alone: nodes of
        it, such as the placeholders that torch.compile makes of parameters. Fused ops need such weights.
    dtype: what the result will be cast to; None where it keeps its own.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(graph_module.graph, mapping)
    graph.output(output).meta = dict(graph_module.graph.output_node().meta)
    for old, new in mapping.items():
        new.meta = {**old.meta, "origins": [old.name]}
    graph.owning_module = graph_module  # nested graphs are found through it
    given = None if weights is None else [mapping[node] for node in weights]
    refusals: dict[tuple[str, str], Refusal] = {}
    facts = Facts(graph, given, dtype)
    for rules in stages:
        while any(_apply(graph, rule, facts, refusals) for rule in rules):
            facts = Facts(graph, given, dtype)
    graph.eliminate_dead_code()
    nested = _rewrite_nested(graph, Facts(graph, given, dtype), stages, dtype)
    graph.owning_module = None
    graph.lint()
    rewritten = Rewritten(fx.GraphModule(graph_module, graph), list(refusals.values()), nested)
    for name, inner in nested.items():
        # Not among its submodules, which it may share with the user's model.
        rewritten.graph_module._modules.pop(name)
        rewritten.graph_module.__dict__[name] = inner.graph_module
    return rewritten


def _rewrite_nested(
    graph: fx.Graph, facts: Facts, stages: Sequence[list[Rule]], dtype: torch.dtype | None
) -> dict[str, Rewritten]:
    """The graphs that the graph's higher order operators run; not those of autocast regions, where autocast decides
    operator by operator."""
    nested: dict[str, Rewritten] = {}
    for node in graph.nodes:
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            continue
        for attribute, inner in nested_graphs(node).items():
            name = str(attribute.target)
            if inner is not None and name not in nested and "." not in name and facts.barrier([node]) is None:
                weights = _weights_within(node, inner, facts)
                nested[name] = rewrite(inner, stages, weights=weights, dtype=dtype)
    return nested


def _weights_within(node: fx.Node, inner: fx.GraphModule, facts: Facts) -> list[fx.Node]:
    """The placeholders of a nested graph that are given weights of the outer one, in every iteration where it loops."""
    places = list(inner.graph.find_nodes(op="placeholder"))
    if node.target is torch.ops.higher_order.cond:
        given = list(node.args[3])  # type: ignore[arg-type]
    elif node.target is torch.ops.higher_order.while_loop:
        given = [None] * len(node.args[2]) + list(node.args[3])  # type: ignore[arg-type]
    else:
        return []
    return [place for place, value in zip(places, given, strict=True) if value in facts.weights]


def _apply(graph: fx.Graph, rule: Rule, facts: Facts, refusals: dict[tuple[str, str], Refusal]) -> bool:
    """Rewrites every place that the rule takes; whether there was one."""
    changed = False
    for node in list(graph.nodes):
        if node._erased:
            continue
        match = rule.match(node, facts)
        if match is None:
            continue
        anchor = origins([node])[0]
        reason = match.reason or facts.barrier(match.nodes)
        if reason is not None:
            refusals[rule.name, anchor] = Refusal(rule.name, anchor, reason)
            continue
        refusals.pop((rule.name, anchor), None)
        _replace(graph, rule, match, facts)
        changed = True
    return changed


def _replace(graph: fx.Graph, rule: Rule, match: Match, facts: Facts) -> None:
    last = match.nodes[-1]
    before = last.prev
    with graph.inserting_before(last):
        new = rule.replace(graph, match)
    if new not in last.all_input_nodes:  # else one that was there already takes over
        new.meta = {"val": last.meta.get("val"), **new.meta, "origins": origins(match.nodes), "rule": rule.name}
    else:
        new.meta = {**new.meta, "origins": origins([*match.nodes, new]), "rule": rule.name}
    made = before.next
    while made is not last:
        facts.add(made)
        made = made.next
    last.replace_all_uses_with(new)
    for node in reversed(match.nodes):
        if not node.users:
            graph.erase_node(node)
