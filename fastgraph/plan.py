"""Stretches of a program that run as one native plan: fused ops, ATen's operators that have kernels, and views.

`kernels/runtime/plan.h` is the other half. A stretch ends before an operator of torch that reads one of its results,
and before one that writes into a tensor. Between its kernels nothing is a tensor of torch; its results are. For each
shape of its inputs it is lowered once, which decides how values lie and which kernels there are (`fastgraph.lowered`).
"""

import operator
from collections.abc import Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import is_mutation, tensors
from fastgraph.gradients import compiled
from fastgraph.kernels import native
from fastgraph.kernels.library import Size
from fastgraph.kernels.lowering import are_alike, can_be_lowered
from fastgraph.lowered import Lowered, lower

aten = torch.ops.aten

# The same values, in another shape or order.
VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.contiguous.default,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    operator.getitem,
}
SIZES = {aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv}

_MAX_FORMS = 4096  # of inputs, that are remembered
_MOST = 8  # inputs, and results, of a stretch: kMaxViews in kernels/runtime/guard.cpp


def with_plans(
    program: fx.Graph, bound: Mapping[str, bool], constants: Collection[str]
) -> tuple[fx.Graph, dict[str, fx.Graph]]:
    """The program with a call of "plan_<i>" for each stretch that is worth one, and their graphs by these names.

    bound: the names that call_module nodes have; True for those that alone make a stretch worth a plan (a convolution
    lies otherwise than ATen's). constants: those of get_attr nodes whose tensors stay what they are.
    """
    grouping = _Grouping(bound, constants)
    for node in program.nodes:
        grouping.add(node)
    grouping.program.eliminate_dead_code(lambda node: node.target not in SIZES)  # those read within stretches only
    return grouping.program, grouping.stretches


def is_lowered(node: fx.Node) -> bool:
    """Whether the node calls one of ATen's operators that have kernels in a plan, on fp32 tensors of the CPU."""
    if node.op != "call_function" or not can_be_lowered(node.target, *node.args, **node.kwargs):
        return False
    return all(is_fp32(n) for n in (node, *node.all_input_nodes)) and all(
        is_size(n) for n in node.all_input_nodes if not tensors(n.meta.get("val"))
    )


def is_size(node: fx.Node) -> bool:
    """Whether it is a number that is computed from sizes of tensors."""
    if node.op != "call_function" or node.target not in SIZES:
        return False
    return node.target is aten.sym_size.int or all(map(is_size, node.all_input_nodes))


def is_fp32(node: fx.Node) -> bool:
    """True too for numbers. What a file says of a tensor is on no device."""
    return all(t.dtype is torch.float32 and t.device.type in ("cpu", "meta") for t in tensors(node.meta.get("val")))


class _Grouping:
    """Copies a program node by node; the stretch that is being gathered comes behind what does not depend on it."""

    def __init__(self, bound: Mapping[str, bool], constants: Collection[str]) -> None:
        self.program, self.stretches = fx.Graph(), dict[str, fx.Graph]()
        self._bound, self._constants = bound, constants
        self._mapping: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, None] = {}

    def add(self, node: fx.Node) -> None:
        if self._is_member(node):
            self._members[node] = None
            return
        if node.op == "output" or is_mutation(node) or not self._members.keys().isdisjoint(node.all_input_nodes):
            self._close()
        self._copy(node)

    def _is_bound(self, node: fx.Node) -> bool:
        return node.op == "call_module" and node.target in self._bound

    def _is_computed(self, node: fx.Node) -> bool:
        return self._is_bound(node) or is_lowered(node)

    def _is_member(self, node: fx.Node) -> bool:
        if self._is_computed(node):
            return True
        if node.op != "call_function" or self._members.keys().isdisjoint(node.all_input_nodes):
            return False
        if node.target in VIEWS:
            return node.args[0] in self._members and all(map(is_size, node.all_input_nodes[1:]))
        return is_size(node)

    def _copy(self, node: fx.Node) -> None:
        self._mapping[node] = self.program.node_copy(node, lambda n: self._mapping[n])

    def _close(self) -> None:
        """Emits the stretch, and behind it what else of its nodes others read."""
        members = self._members
        outside = {m for m in members if not members.keys() >= m.users.keys()}
        for node in reversed(members):
            if node in outside and not self._is_computed(node):
                outside.update(n for n in node.all_input_nodes if n in members)
        results = [node for node in members if node in outside and self._is_computed(node)]
        inner = _Inner(members, self._constants)
        inner.graph.output(tuple(inner.mapping[node] for node in results))
        if not self._is_worth(members) or max(len(inner.inputs), len(results)) > _MOST or not inner.inputs:
            for node in members:
                self._copy(node)
        else:
            name = f"plan_{len(self.stretches)}"
            self.stretches[name] = inner.graph
            call = self.program.call_module(name, tuple(self._mapping[node] for node in inner.inputs))
            for i, node in enumerate(results):
                one = len(results) == 1
                self._mapping[node] = call if one else self.program.call_function(operator.getitem, (call, i))
            for node in members:
                if node in outside and not self._is_computed(node):
                    self._copy(node)
        self._members = {}

    def _is_worth(self, members: Collection[fx.Node]) -> bool:
        bound = [node for node in members if self._is_bound(node)]
        return any(self._bound[str(node.target)] for node in bound) or (
            len(bound) > 0 and sum(map(self._is_computed, members)) > 1
        )


class _Inner:
    """A stretch as a graph of its own: inputs are tensors, and sizes are read of them anew."""

    def __init__(self, members: Collection[fx.Node], constants: Collection[str]) -> None:
        self.graph, self.inputs = fx.Graph(), list[fx.Node]()
        self.mapping: dict[fx.Node, fx.Node] = {}
        self._constants = constants
        self._begin = self.graph.create_node("placeholder", "begin")
        for node in members:
            self.mapping[node] = self.graph.node_copy(node, partial(self._translate, node))
        self.graph.erase_node(self._begin)

    def _translate(self, user: fx.Node, node: fx.Node) -> fx.Node:
        if node not in self.mapping:
            if is_size(node):
                self.mapping[node] = self.graph.node_copy(node, partial(self._translate, node))
            elif node.op == "get_attr" and node.target in self._constants:
                self.mapping[node] = self.graph.node_copy(node)
            else:
                self.inputs.append(node)
                with self.graph.inserting_before(self._begin):
                    self.mapping[node] = self.graph.placeholder(f"input_{len(self.inputs)}")
        return self.mapping[node]


class Plan:
    """A stretch for one state of the parameters, as a function of its inputs. `ops`: its fused ops and ATen's operators
    with constant weights by their names; `constants`: other tensors that it reads.

    kernel: its `run(inputs, outputs, threads)` computes all of it for inputs that were admitted; None without kernels.
    """

    def __init__(self, graph: fx.Graph, ops: Mapping[str, Any], constants: Mapping[str, torch.Tensor]) -> None:
        self._graph, self._ops, self._constants = graph, ops, constants
        module = native.kernels()
        used = [ops[str(node.target)] for node in graph.find_nodes(op="call_module")]
        is_native = module is not None and all(op.kernel is not None for op in used)
        self.kernel = module.Plan(len(graph.find_nodes(op="placeholder"))) if is_native and module else None
        self._general = partial(compiled(graph), SimpleNamespace(**constants, **ops))
        self._forms: dict[Any, Lowered | None] = {}

    @property
    def is_native(self) -> bool:
        """Whether kernels compute it, as far as is known: of some inputs so far, or of none yet."""
        return self.kernel is not None and (not self._forms or any(f is not None for f in self._forms.values()))

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The tensor, or a tuple of several."""
        lowered = self._lowered(inputs)
        if lowered is None:
            results = self._general(*inputs)  # node by node
        else:
            given = [x.contiguous() for x in inputs]
            results = [given[0].new_empty(size) for size in lowered.sizes]
            assert self.kernel is not None
            self.kernel.run(given, results, torch.get_num_threads())
            results = tuple(map(_with_strides, results, lowered.strides or ()))
        return results[0] if len(results) == 1 else results

    def result_sizes(self, *inputs: torch.Tensor) -> list[Size] | None:
        """Sizes of the results where the kernel takes these inputs, and others like them from now on; else None."""
        lowered = self._lowered(inputs)
        if lowered is None or not all(x.is_contiguous() for x in inputs):
            return None
        contiguous = (torch.empty(size, device="meta").stride() for size in lowered.sizes)
        alike = map(are_alike, lowered.sizes, lowered.strides or (), contiguous)
        return lowered.sizes if all(alike) else None

    def _lowered(self, inputs: tuple[torch.Tensor, ...]) -> Lowered | None:
        if self.kernel is None or not all(native.is_plain(x, torch.float32) for x in inputs):
            return None
        form = tuple((x.shape, x.stride()) for x in inputs)
        if form not in self._forms:
            lowered = lower(self._graph, self._ops, self._constants, inputs)
            if lowered is not None:
                if lowered.strides is None:
                    lowered = lowered._replace(strides=[y.stride() for y in self._general(*inputs)])
                self.kernel.admit(lowered.slots, lowered.inputs, lowered.outputs, lowered.steps)
            if len(self._forms) < _MAX_FORMS:
                self._forms[form] = lowered
            return lowered
        return self._forms[form]


def _with_strides(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    if are_alike(x.shape, x.stride(), strides):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
