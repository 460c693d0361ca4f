"""Rewrites a captured graph: first simplifications, then fusions, one file a rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fastgraph.rewrite import conv_pool, conv_pool_mlp, mlp, simplify
from fastgraph.rewrite.rule import Match, Refusal, Rule, is_mutation, origins

# Each stage runs until nothing changes.
STAGES: tuple[list[Rule], ...] = (simplify.RULES, conv_pool.RULES, mlp.RULES, conv_pool_mlp.RULES)
# Without the fusions: what is left are ATen operators, which other programs know too.
SIMPLIFICATIONS = STAGES[:1]


@dataclass
class Rewritten:
    """A rewritten graph, and the places where a rule was refused.

    A node carries in `meta["origins"]` the names of the eager nodes that it stands for, and in `meta["rule"]` the rule
    that made it.
    """

    graph_module: fx.GraphModule
    refusals: list[Refusal]

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators and fused ops."""
        return self.graph_module.graph


def rewrite(graph_module: fx.GraphModule, stages: Sequence[list[Rule]] = STAGES) -> Rewritten:
    """A copy of the graph, rewritten by the rules of `stages`; parameters are shared."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(graph_module.graph, mapping)
    graph.output(output)
    for old, new in mapping.items():
        new.meta = {**old.meta, "origins": [old.name]}
    refusals: dict[tuple[str, str], Refusal] = {}
    for rules in stages:
        while any(_apply(graph, rule, refusals) for rule in rules):
            pass
    graph.eliminate_dead_code()
    graph.lint()
    return Rewritten(fx.GraphModule(graph_module, graph), list(refusals.values()))


def _apply(graph: fx.Graph, rule: Rule, refusals: dict[tuple[str, str], Refusal]) -> bool:
    """Rewrites every place that the rule takes; whether there was one."""
    changed = False
    for node in list(graph.nodes):
        if node._erased:
            continue
        match = rule.match(node)
        if match is None:
            continue
        anchor = origins([node])[0]
        reason = match.reason or _mutation_between(graph, match)
        if reason is not None:
            refusals[rule.name, anchor] = Refusal(rule.name, anchor, reason)
            continue
        refusals.pop((rule.name, anchor), None)
        _replace(graph, rule, match)
        changed = True
    return changed


def _mutation_between(graph: fx.Graph, match: Match) -> str | None:
    """The replacement takes the last node's place: nothing on the way there may write into memory."""
    inside = False
    for node in graph.nodes:
        if node is match.nodes[-1]:
            return None
        if inside and node not in match.nodes and is_mutation(node):
            return f"{node.name} writes in place between its parts"
        inside = inside or node is match.nodes[0]
    return None


def _replace(graph: fx.Graph, rule: Rule, match: Match) -> None:
    last = match.nodes[-1]
    with graph.inserting_before(last):
        new = rule.replace(graph, match)
    names = origins([*match.nodes, new]) if new in last.all_input_nodes else origins(match.nodes)
    new.meta = {**last.meta, **new.meta, "val": last.meta.get("val"), "origins": names, "rule": rule.name}
    last.replace_all_uses_with(new)
    for node in reversed(match.nodes):
        if not node.users:
            graph.erase_node(node)
