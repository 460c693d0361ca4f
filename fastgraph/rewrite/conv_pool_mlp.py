"""A `conv_pool` whose pooled rows are the rows of an `mlp` becomes one `fastgraph::conv_pool_mlp`."""

from torch import fx

from fastgraph.kernels.library import Op
from fastgraph.rewrite import conv_pool, mlp
from fastgraph.rewrite.rule import Facts, Match, Rule, aten, calls, only_user, value

VIEW = (aten.view.default, aten.reshape.default)
OP = Op.named("conv_pool_mlp").target


class ConvPoolMlp:
    """mlp(conv_pool(x).view(-1, in_features)) where in_features is the pooled width, anchored at the mlp."""

    name = "conv_pool_mlp"

    def match(self, node: fx.Node, facts: Facts) -> Match | None:
        if not calls(node, mlp.OP):
            return None
        source = node.args[0]
        if calls(source, conv_pool.OP):
            assert isinstance(source, fx.Node)
            return Match([source, node], reason="its result would keep four dimensions")
        if not (calls(source, *VIEW, aten.flatten.using_ints) and calls(source.args[0], conv_pool.OP)):  # type: ignore[union-attr]
            return None
        assert isinstance(source, fx.Node)
        pool = source.args[0]
        assert isinstance(pool, fx.Node)
        return Match([pool, source, node], reason=self._refusal(pool, source, node))

    def _refusal(self, pool: fx.Node, view: fx.Node, node: fx.Node) -> str | None:
        if only_user(pool) is None or only_user(view) is None:
            return "the pooled rows are used elsewhere too"
        features = value(node.args[1][0]).shape[1]  # type: ignore[index]
        width = value(pool).shape[3]
        hint = width if isinstance(width, int) else width.node.hint
        if value(view).dim() != 2 or features != hint:
            return f"the rows of the mlp ({features} features) are not the pooled rows ({hint})"
        return None

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        pool, _, node = match.nodes
        return graph.call_function(OP, (*pool.args, *node.args[1:]))


RULES: list[Rule] = [ConvPoolMlp()]
