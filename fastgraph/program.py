"""The direct engine: runs a rewritten graph as it is, fused ops on packed weights.

What depends on parameters alone (folded batch-norm, casts, packed weights) is computed once and kept as long as no
parameter has changed; see `kernels.weights.Snapshot` for what counts as a change.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fastgraph.constants import constant_nodes, fold, unversioned_nodes
from fastgraph.gradients import GradientProgram, compiled
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.fast_path import fast_path, guard
from fastgraph.kernels.library import Op
from fastgraph.kernels.lowering import BOUND, LOWERINGS
from fastgraph.kernels.weights import Snapshot
from fastgraph.plan import Plan, is_fp32, with_plans


def with_fast_path(op: Bound | Plan) -> Callable[..., Any]:
    """`op` by its fast path for inputs of a form that was seen before (3 us instead of 6)."""
    path = fast_path(op.kernel)
    if path is None:
        return op

    def call(*inputs: torch.Tensor) -> Any:
        result = path(*inputs)
        if result is None:
            result = op(*inputs)
            _admit(path, op, *inputs)
        return result

    return call


def _admit(path: Any, op: Bound | Plan, *inputs: torch.Tensor) -> None:
    """Inputs like these may take the op's fast path from now on, if the kernel takes them as they are."""
    if (sizes := op.result_sizes(*inputs)) is not None:
        path.admit(list(inputs), sizes)


@dataclass
class State:
    """Everything that holds for one state of the parameters."""

    snapshot: Snapshot
    values: SimpleNamespace  # constants and fused ops under the names that the program uses
    computed: dict[fx.Node, torch.Tensor]  # constants that are no parameters
    plans: dict[str, Plan]
    forward: Callable[..., Any]  # the program, of the values
    # A call of the module in one step, where there can be one: its result, or None for the general way.
    fast_path: Callable[..., Any] | None = None
    admit: Callable[..., None] = lambda *inputs: None  # lets inputs like these take the fast path from now on
    with_gradients: Callable[..., Any] | None = None  # the program with gradients, once it was wanted


class Program:
    """A rewritten graph as straight-line Python over ATen operators and fused ops with packed weights.

    `module` owns the parameters that the graph's get_attr nodes name. Call `run(state, *flat_inputs)` with gradients
    off, `run_with_gradients(*flat_inputs)` with gradients on; both return the tuple of flat outputs. `out_spec`: what
    the module makes of them, where its arguments are the graph's inputs as they are; a state then has a fast path, open
    as long as `structure` says that the module is what it was. `pack` False leaves the fused ops as they are, for a
    compiler.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        *,
        out_spec: pytree.TreeSpec | None = None,
        structure: Any = None,
        pack: bool = True,
    ) -> None:
        self._slots = {node: _slot(module, graph, str(node.target)) for node in graph.nodes if node.op == "get_attr"}
        constants = constant_nodes(graph)
        unversioned = unversioned_nodes(graph, constants, lambda node: self._slots[node][0][self._slots[node][1]])
        # Nothing is computed beforehand where a change could not be seen.
        self._constants = {node for node in constants if node.op == "get_attr" or node not in unversioned}
        self._rewritten = graph
        self._structure = structure
        watched = {node: slot for node, slot in self._slots.items() if node in constants}
        self._watched = [slot for node, slot in watched.items() if node not in unversioned]
        self._computed_from = len(self._watched)  # of what is watched; the others are only read
        self._watched += [slot for node, slot in watched.items() if node in unversioned]
        self._names: dict[fx.Node, str] = {}
        self._fused: dict[str, tuple[Op, fx.Node]] = {}
        self._bound: dict[str, fx.Node] = {}  # ATen's operators that have kernels in plans, with constant weights
        self._whole = self._without_constants(pack)
        self._without_kernels: set[str] = set()  # names of calls
        self._group()
        self._out_spec = out_spec
        self._lock = threading.Lock()
        self._state: State | None = None

    def _group(self) -> None:
        """Finds the stretches that are plans, of calls that have kernels as far as is known."""
        fixed = {name for node, name in self._names.items() if node in self._constants}
        bound = dict.fromkeys(self._fused, False) | {
            name: BOUND[node.target].makes_a_plan for name, node in self._bound.items()
        }
        known = {name: alone for name, alone in bound.items() if name not in self._without_kernels}
        self.graph, self._stretches = with_plans(self._whole, known, fixed)
        self._forward = compiled(self.graph)

    def tensors(self) -> list[torch.Tensor]:
        """The parameters and buffers that the state depends on, as they are now."""
        return [owner[name] for owner, name in self._watched]

    def all_tensors(self) -> list[torch.Tensor]:
        """Those, and the ones that the graph writes to."""
        values = (owner[name] for owner, name in self._slots.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def follow(self, structure: Any) -> None:
        """Forgets the state; `structure` guards the next one."""
        with self._lock:
            self._structure, self._state = structure, None

    def fresh_state(self) -> State:
        """Packed weights and other constants for the parameters as they are now."""
        state = self._state
        if state is None or not state.snapshot.matches(self.tensors()):
            with self._lock:
                self._state = state = self.state()
        return state

    def state(self) -> State:
        """Computes the constants and packs the weights."""
        tensors = self.tensors()
        snapshot = Snapshot(tensors[: self._computed_from], tensors[self._computed_from :])
        values: dict[fx.Node, Any] = {node: owner[name] for node, (owner, name) in self._slots.items()}
        fold([node for node in self._rewritten.nodes if node in self._constants], values)
        named = {name: values[node] for node, name in self._names.items()}
        ops = {name: Bound(op, *fold(node.args[1:], values)) for name, (op, node) in self._fused.items()}
        aten = {
            name: BOUND[n.target](n.target, *fold(n.args[1:], values), **fold(n.kwargs, values))
            for name, n in self._bound.items()
        }
        without = {name for name, op in (ops | aten).items() if op.kernel is None}
        if without != self._without_kernels:
            self._without_kernels = without
            self._group()
        plans = {name: Plan(graph, ops | aten, named) for name, graph in self._stretches.items()}
        calls: dict[str, Any] = ops | plans
        fused = aten | {name: with_fast_path(call) for name, call in calls.items()}
        computed = {node: value for node, value in values.items() if node.op == "call_function"}
        state = State(snapshot, SimpleNamespace(**named, **fused), computed, plans, self._forward)
        if (name := self._only_call()) in calls:
            self._open_kernel(state, calls[name])
        elif self._out_spec is not None and self._returns_tensors():
            self._open_program(state, self._out_spec)
        return state

    def _open_kernel(self, state: State, op: Bound | Plan) -> None:
        """A fast path into the kernel of `op`, which is all of the program."""
        path = fast_path(op.kernel, self._watched, state.snapshot, structure=self._structure)
        if path is not None:
            state.fast_path, state.admit = path, partial(_admit, path, op)

    def _open_program(self, state: State, out_spec: pytree.TreeSpec) -> None:
        """A guard before the program: one look in native code at what `OptimizedModule` asks on the general way."""
        holds = guard(self._watched, state.snapshot, structure=self._structure)
        if holds is not None:
            run, values = state.forward, state.values
            result = itemgetter(0) if out_spec.is_leaf() else out_spec.unflatten  # the former 0.5 us less
            state.fast_path = lambda *inputs: result(run(values, *inputs)) if holds(*inputs) else None
            state.admit = holds.admit

    def run(self, state: State, *inputs: Any) -> tuple[Any, ...]:
        """The program on flattened inputs."""
        return state.forward(state.values, *inputs)

    def run_with_gradients(self, *inputs: Any) -> tuple[Any, ...]:
        """The same, with gradients for the inputs and the parameters."""
        state = self.fresh_state()
        if state.with_gradients is None:
            state.with_gradients = self._gradients.bind(state.values, state.computed)
        return state.with_gradients(*inputs)

    @cached_property
    def _gradients(self) -> GradientProgram:
        fused = {node: name for name, (_, node) in self._fused.items()}
        return GradientProgram(self._rewritten, self._constants, self._slots, fused)

    def computed(self) -> list[str]:
        """Names in `State.values` of what is computed from parameters and buffers, rather than one of them."""
        return [name for node, name in self._names.items() if node.op == "call_function"]

    def planned(self) -> dict[str, str]:
        """Names of the rewritten graph's nodes that native plans compute, with the kernels' names."""
        found: dict[str, str] = {}
        state = self._state
        for name, graph in self._stretches.items():
            if state is None or state.plans[name].is_native:
                nodes = [node for node in graph.nodes if "of" in node.meta]
                found |= {node.meta["of"]: kernel for node in nodes if (kernel := self._kernel(node)) is not None}
        return found

    def _kernel(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            bound = self._bound.get(str(node.target))
            return None if bound is None else BOUND[bound.target].name
        lowering = LOWERINGS.get(node.target) if node.op == "call_function" else None
        return None if lowering is None else lowering.__module__.split(".")[-2]

    def _without_constants(self, pack: bool) -> fx.Graph:
        """The graph with constants as attributes, and fused ops with constant weights as functions of one tensor."""
        program = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}

        def translate(node: fx.Node) -> fx.Node:
            if node not in mapping:  # a constant, or a tensor that the graph writes to
                self._names[node] = f"constant_{len(self._names)}"
                mapping[node] = program.create_node("get_attr", self._names[node])
                mapping[node].meta = node.meta
            return mapping[node]

        for node in self._rewritten.nodes:
            if node in self._constants or node.op == "get_attr":
                continue
            op = Op.of(node.target) if pack else None
            if op is not None and self._has_constant_weights(node):
                name = f"{op.name}_{len(self._fused)}"
                self._fused[name] = op, node
                mapping[node] = program.create_node("call_module", name, (translate(node.args[0]),))
                mapping[node].meta = {**node.meta, "of": node.name}
            elif pack and node.target in BOUND and self._has_constant_weights(node) and is_fp32(node):
                name = f"{BOUND[node.target].name}_{len(self._bound)}"
                self._bound[name] = node
                mapping[node] = program.create_node("call_module", name, (translate(node.args[0]),))
                mapping[node].meta = {**node.meta, "of": node.name}
            else:
                mapping[node] = program.node_copy(node, translate)
                mapping[node].meta["of"] = node.name
        return program

    def _has_constant_weights(self, node: fx.Node) -> bool:
        source = node.args[0]
        return source not in self._constants and all(
            n in self._constants for n in node.all_input_nodes if n is not source
        )

    def _only_call(self) -> str | None:
        """The fused op or plan that is all of the program, from what the module takes to the one tensor it returns."""
        if self._out_spec is None or not self._out_spec.is_leaf():
            return None
        *inputs, call, output = self.graph.nodes
        is_all = {node.op for node in inputs} == {"placeholder"} and call.args == tuple(inputs)
        return str(call.target) if is_all and call.op == "call_module" and output.args == ((call,),) else None

    def _returns_tensors(self) -> bool:
        results = next(iter(reversed(self.graph.nodes))).args[0]
        return bool(results) and all(isinstance(node, fx.Node) for node in results)


def _slot(module: nn.Module, graph: fx.Graph, target: str) -> tuple[dict[str, Any], str]:
    """The dictionary and key that hold an attribute of the graph, now and after it is replaced."""
    rewritten = vars(graph.owning_module) if graph.owning_module is not None else {}
    if isinstance(rewritten.get(target), fx.GraphModule):  # a nested graph, which is no submodule of the user's model
        return rewritten, target
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    slots: dict[str, Any]
    for slots in (owner._parameters, owner._buffers, owner._modules):
        if name in slots:
            return slots, name
    return owner.__dict__, name
