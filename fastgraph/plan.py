"""Stretches of a program that run as one native plan: fused ops, and what only shows their results in another shape.

`kernels/runtime/plan.h` is the other half. A stretch ends before an operator of torch that reads one of its results,
and before one that writes into a tensor. Between its kernels nothing is a tensor of torch; its results are.
"""

import operator
from collections.abc import Collection, Mapping
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import is_mutation
from fastgraph.gradients import compiled
from fastgraph.kernels import native
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Size

aten = torch.ops.aten

# Of a contiguous tensor they are its values as they lie.
VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
SIZES = {aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv}

_MOST = 8  # inputs, and results, of a stretch: kMaxViews in kernels/runtime/guard.cpp


def with_plans(program: fx.Graph, fused: Collection[str]) -> tuple[fx.Graph, dict[str, fx.Graph]]:
    """The program with a call of "plan_<i>" for each stretch of two kernels or more, and their graphs by these names.

    fused: the names that its call_module nodes with fused ops have.
    """
    grouping = _Grouping(fused)
    for node in program.nodes:
        grouping.add(node)
    grouping.program.eliminate_dead_code(lambda node: node.target not in SIZES)  # those read within stretches only
    return grouping.program, grouping.stretches


class _Grouping:
    """Copies a program node by node; the stretch that is being gathered comes behind what does not depend on it."""

    def __init__(self, fused: Collection[str]) -> None:
        self.program, self.stretches = fx.Graph(), dict[str, fx.Graph]()
        self._fused = fused
        self._mapping: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, None] = {}

    def add(self, node: fx.Node) -> None:
        if self._is_member(node):
            self._members[node] = None
            return
        if node.op == "output" or is_mutation(node) or not self._members.keys().isdisjoint(node.all_input_nodes):
            self._close()
        self._copy(node)

    def _is_fused(self, node: fx.Node) -> bool:
        return node.op == "call_module" and node.target in self._fused

    def _is_member(self, node: fx.Node) -> bool:
        if self._is_fused(node):
            return True
        if node.op != "call_function" or self._members.keys().isdisjoint(node.all_input_nodes):
            return False
        if node.target in VIEWS:
            return node.args[0] in self._members and all(map(self._is_size, node.all_input_nodes[1:]))
        return self._is_size(node)

    def _is_size(self, node: fx.Node) -> bool:
        """A number that is computed from sizes of tensors."""
        if node.op != "call_function" or node.target not in SIZES:
            return False
        return node.target is aten.sym_size.int or all(map(self._is_size, node.all_input_nodes))

    def _copy(self, node: fx.Node) -> None:
        self._mapping[node] = self.program.node_copy(node, lambda n: self._mapping[n])

    def _close(self) -> None:
        """Emits the stretch, and behind it what else of its nodes others read."""
        members = self._members
        outside = {m for m in members if not members.keys() >= m.users.keys()}
        for node in reversed(members):
            if node in outside and not self._is_fused(node):
                outside.update(n for n in node.all_input_nodes if n in members)
        results = [node for node in members if node in outside and self._is_fused(node)]
        inner = _Inner(members)
        inner.graph.output(tuple(inner.mapping[node] for node in results))
        is_worth = sum(map(self._is_fused, members)) > 1 and max(len(inner.inputs), len(results)) <= _MOST
        if not is_worth:
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
                if node in outside and not self._is_fused(node):
                    self._copy(node)
        self._members = {}


class _Inner:
    """A stretch as a graph of its own: inputs are tensors, and sizes are read of them anew."""

    def __init__(self, members: Collection[fx.Node]) -> None:
        self.graph, self.inputs = fx.Graph(), list[fx.Node]()
        self.mapping: dict[fx.Node, fx.Node] = {}
        self._begin = self.graph.create_node("placeholder", "begin")
        for node in members:
            self.mapping[node] = self.graph.node_copy(node, partial(self._translate, node))
        self.graph.erase_node(self._begin)

    def _translate(self, user: fx.Node, node: fx.Node) -> fx.Node:
        if node not in self.mapping:
            is_size = user.target in SIZES and user.target is not aten.sym_size.int
            if is_size or (user.target in VIEWS and node is not user.args[0]):
                self.mapping[node] = self.graph.node_copy(node, partial(self._translate, node))
            else:
                self.inputs.append(node)
                with self.graph.inserting_before(self._begin):
                    self.mapping[node] = self.graph.placeholder(f"input_{len(self.inputs)}")
        return self.mapping[node]


class Plan:
    """A stretch for one state of the parameters, as a function of its inputs. `ops`: its fused ops by their names.

    kernel: its `run(inputs, outputs, threads)` computes all of it; None where one of the ops has no kernel.
    """

    def __init__(self, graph: fx.Graph, ops: Mapping[str, Bound]) -> None:
        self._graph, self._ops = graph, ops
        self._inputs = list(graph.find_nodes(op="placeholder"))
        self._results: list[fx.Node] = list(graph.output_node().all_input_nodes)
        tensors = [n for n in graph.nodes if n.op in ("placeholder", "call_module") or n.target in VIEWS]
        self._slots = {node: slot for slot, node in enumerate(tensors)}
        self.kernel = self._native()
        self._general = partial(compiled(graph), SimpleNamespace(**ops))

    def _native(self) -> Any:
        module, slots = native.kernels(), self._slots
        steps = [(self._ops[n.target].kernel, [slots[n.args[0]]], [slots[n]]) for n in slots if n.op == "call_module"]
        if module is None or any(kernel is None for kernel, _, _ in steps):
            return None
        memory: list[int] = []
        for node in slots:
            memory.append(memory[slots[node.args[0]]] if node.op == "call_function" else len(memory))
        inputs, results = ([slots[node] for node in nodes] for nodes in (self._inputs, self._results))
        return module.Plan(len(slots), inputs, results, steps, memory)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Kernel by kernel: the tensor, or a tuple of several."""
        results = self._general(*inputs)
        return results[0] if len(results) == 1 else results

    def result_sizes(self, *inputs: torch.Tensor) -> list[Size] | None:
        """Sizes of the results where the kernel takes these inputs, and others like them from now on; else None."""
        if self.kernel is None:
            return None
        values: dict[fx.Node, Any] = dict(zip(self._inputs, inputs, strict=True))
        for node in self._graph.nodes:
            if node.op == "call_module":
                size = self._ops[str(node.target)].output_size(values[node.args[0]])
                if size is None:
                    return None
                values[node] = torch.empty(size, dtype=torch.float32)
            elif node.op == "call_function":
                values[node] = node.target(*fx.map_arg(node.args, lambda n: values[n]), **node.kwargs)
        sizes = [tuple(values[node].shape) for node in self._slots]
        if not all(map(prod, sizes)):
            return None  # nothing to compute: kernels need not know such sizes
        self.kernel.admit([list(size) for size in sizes])
        return [tuple(values[node].shape) for node in self._results]
