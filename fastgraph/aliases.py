"""Which values of a graph may be the same memory, and which memory is written."""

import operator
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten

# They return views or their argument itself, and their schemas do not say so.
_SILENT_VIEWS = (aten._unsafe_view, aten.unsafe_split, aten.unsafe_split_with_sizes, aten.lift)
# An operator that is composed of others (einsum, atleast_3d, type_as, ...) may return a view at some sizes and a copy
# at others, and no schema says so. These always return memory of their own.
_FRESH_NAMES = (
    "linear bilinear matmul linalg_matmul chain_matmul inner outer conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d max_pool1d max_pool1d_with_indices max_pool2d max_pool3d avg_pool1d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d softmax log_softmax "
    "special_softmax special_log_softmax batch_norm layer_norm group_norm instance_norm rms_norm "
    "scaled_dot_product_attention prelu relu6 selu log_sigmoid square std var std_mean var_mean where max min "
    "one_hot isfinite isclose isreal lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d grid_sampler cosine_similarity pairwise_distance cdist det "
    "linalg_norm embedding_bag argsort msort true_divide divide multiply subtract concat concatenate hstack vstack "
    "dstack column_stack"
)
_COMPOSED_AND_FRESH = {getattr(aten, name) for name in _FRESH_NAMES.split()}
# Sets a flag of the tensor, not its memory.
_WRITES_NO_MEMORY = (aten.detach_.default,)


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a node's recorded value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def argument(node: fx.Node, name: str) -> Any:
    """An argument by the name it has in the operator's schema, its default where it is not given."""
    schema = node.target._schema  # type: ignore[union-attr]
    for position, formal in enumerate(schema.arguments):
        if formal.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, formal.default_value if formal.has_default_value() else None)
    raise KeyError(f"{node.target} has no argument {name}")


def nested_graphs(node: fx.Node) -> dict[fx.Node, fx.GraphModule | None]:
    """The graphs that a higher order operator (torch.cond, an autocast region, ...) runs, by its get_attr arguments;
    None for one that cannot be found, since the graph has no module."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return {}
    graphs: dict[fx.Node, fx.GraphModule | None] = {}
    for arg in node.all_input_nodes:
        if arg.op == "get_attr" and not tensors(arg.meta.get("val")):
            try:
                graphs[arg] = operator.attrgetter(str(arg.target))(node.graph.owning_module)
            except AttributeError:
                graphs[arg] = None
    return graphs


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments whose memory the node writes."""
    if node.op != "call_function":
        return list(node.all_input_nodes) if node.op in ("call_module", "call_method") else []
    if isinstance(node.target, torch._ops.OpOverload):
        return list(_nodes(_written_values(node))) if _can_write(node.target) else []
    graphs = nested_graphs(node)
    if any(graph is None or _writes_outside(graph.graph) for graph in graphs.values()):
        return [arg for arg in node.all_input_nodes if arg not in graphs]
    return []


@cache
def _can_write(target: torch._ops.OpOverload) -> bool:
    schema = target._schema
    return schema.is_mutable or any(formal.name == "running_mean" for formal in schema.arguments)


def _written_values(node: fx.Node) -> Iterator[Any]:
    schema = node.target._schema  # type: ignore[union-attr]
    names = {formal.name for formal in schema.arguments}
    switches = [argument(node, name) for name in ("train", "training", "use_input_stats") if name in names]
    if "running_mean" in names and any(switches):  # no schema says that statistics are updated
        yield from (argument(node, name) for name in ("running_mean", "running_var"))
    if node.target in _WRITES_NO_MEMORY or ("train" in names and not any(switches)):  # dropout_ in eval mode
        return
    for formal in schema.arguments:
        if formal.alias_info is not None and formal.alias_info.is_write:
            yield argument(node, formal.name)


def _nodes(values: Iterable[Any]) -> Iterator[fx.Node]:
    return (leaf for leaf in pytree.tree_leaves(list(values)) if isinstance(leaf, fx.Node))


def is_mutation(node: fx.Node) -> bool:
    """Whether the node writes into one of its arguments."""
    return bool(written(node))


def _writes_outside(graph: fx.Graph) -> bool:
    """Whether a nested graph writes into what it was given."""
    aliases = Aliases(graph)
    return any(aliases.is_outer(arg) for node in graph.nodes for arg in written(node))


def _returns_outside(graph: fx.Graph) -> bool:
    """Whether a nested graph may return memory that it was given."""
    aliases = Aliases(graph)
    return any(aliases.is_outer(result) for result in graph.output_node().all_input_nodes)


def _sources(node: fx.Node) -> list[fx.Node]:
    """The arguments that the node's result may share memory with, as far as operators' schemas tell."""
    target = node.target
    if target is operator.getitem:
        return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
    if isinstance(target, torch._ops.OpOverload):
        return [] if _is_fresh(target) else list(_nodes(_aliased_values(node)))
    graphs = nested_graphs(node)
    if graphs and all(graph is not None and not _returns_outside(graph.graph) for graph in graphs.values()):
        return []
    return [arg for arg in node.all_input_nodes if arg not in graphs]


@cache
def _is_fresh(target: torch._ops.OpOverload) -> bool:
    """Whether the operator's results are never memory of its arguments."""
    packet = target.overloadpacket
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    silent = packet in _SILENT_VIEWS or (composed and packet not in _COMPOSED_AND_FRESH)
    return not silent and not any(result.alias_info is not None for result in target._schema.returns)


def _aliased_values(node: fx.Node) -> Iterable[Any]:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    formals = target._schema.arguments
    if any(result.alias_info is not None for result in target._schema.returns) and target.overloadpacket is not aten.to:
        return [argument(node, formal.name) for formal in formals if formal.alias_info is not None]
    return [arg for arg in node.all_input_nodes if _may_be_one(node, arg)]


def _may_be_one(node: fx.Node, arg: fx.Node) -> bool:
    """Whether a result could be memory of an argument, by their dtypes; yes where one is not known."""
    results, given = tensors(node.meta.get("val")), tensors(arg.meta.get("val"))
    return not results or not given or bool({t.dtype for t in results} & {t.dtype for t in given})


class Aliases:
    """A graph's values in classes of what may share memory, and who writes it.

    Two values are in one class where an operator's schema says that it returns memory of an argument, where the
    operator is known to do so for some sizes, and where the capture's fake tensors had one storage: any of the three,
    since what was a view at the example's sizes can be a copy at others, and the reverse.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._parents: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, list[fx.Node]] = {}
        self._by_storage: dict[int, fx.Node] = {}
        self._writes: list[tuple[fx.Node, fx.Node]] = []  # (the node that writes, the argument that it writes to)
        for node in graph.nodes:
            self.add(node)
        self._unite_inputs()

    def _unite_inputs(self) -> None:
        """A caller may give one tensor twice: if an input is written, any other may be that memory."""
        inputs = [node for node in self._parents if node.op == "placeholder"]
        if any(node.op == "placeholder" for _, to in self._writes for node in self.sharing(to)):
            for node in inputs[1:]:
                self._unite(inputs[0], node)

    def add(self, node: fx.Node) -> None:
        """Takes in a node that was made after the graph was looked at."""
        self._parents[node], self._members[node] = node, [node]
        if node.op == "output":
            return
        self._writes += [(node, arg) for arg in written(node)]
        recorded = tensors(node.meta.get("val"))
        if node.op == "call_function" and (recorded or node.meta.get("val") is None):
            for source in _sources(node):
                self._unite(source, node)
        for tensor in recorded:
            if tensor.layout is torch.strided:
                self._unite(self._by_storage.setdefault(tensor.untyped_storage()._cdata, node), node)

    def _class(self, node: fx.Node) -> fx.Node:
        while (parent := self._parents[node]) is not node:
            self._parents[node] = self._parents[parent]
            node = parent
        return node

    def _unite(self, a: fx.Node, b: fx.Node) -> None:
        a, b = self._class(a), self._class(b)
        if a is not b:
            self._parents[b] = a
            self._members[a] += self._members.pop(b)

    def sharing(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with this one, itself included."""
        return self._members[self._class(node)]

    def share(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two values may share memory."""
        return self._class(a) is self._class(b)

    def writers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that may write this value's memory."""
        return [writer for writer, to in self._writes if self.share(to, node)]

    def is_outer(self, node: fx.Node) -> bool:
        """Whether the value may be memory of an input, a parameter or a buffer."""
        return any(member.op in ("placeholder", "get_attr") for member in self.sharing(node))

    def leaves(self, node: fx.Node) -> bool:
        """Whether the graph may hand out this value's memory."""
        return any(self.share(node, result) for result in self._graph.output_node().all_input_nodes)
