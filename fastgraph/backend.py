"""`torch.compile(model, backend="fastgraph")`: found by torch through the entry point in pyproject.toml.

The backend runs the graph that torch.compile captured, with fused ops in the place of what they stand for, their
weights packed as long as they do not change. Where gradients are wanted, or somebody observes the operators (autocast,
modes, transforms), the captured graph runs as it is, which is eager.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from fastgraph.constants import fold
from fastgraph.gradients import compiled
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.fast_path import is_unobserved
from fastgraph.kernels.weights import Snapshot, has_version
from fastgraph.program import with_fast_path
from fastgraph.torch_fusions import Fusion, Fusions, find, fused_graph

_MISSES = 4  # times in a row that weights were packed for one call, before they have to be seen twice


def fastgraph_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Fuses what it can in the graph that torch.compile captured.

    mode, options: those of torch.compile. They tell Inductor what to do; here they are taken and have no effect.
    ValueError where Inductor does not know them.
    """
    check_options(mode, options)
    if torch._C._is_any_autocast_enabled():
        return graph_module.forward  # it decides operator by operator, and knows eager's
    fusions = find(graph_module.graph)
    return CompiledGraph(graph_module, fusions) if fusions.found else graph_module.forward


def check_options(mode: str | None, options: dict[str, Any] | None) -> None:
    """ValueError, naming the first that torch.compile's own backend does not know either."""
    if mode is not None and mode not in (known := torch._inductor.list_mode_options()):
        raise ValueError(f"mode: needs one of {', '.join(known)}, got {mode!r}")
    known_options = set(torch._inductor.list_options()) if options else set()
    for name in options or ():
        if name.replace("-", "_") not in known_options:
            raise ValueError(f"options: needs options of torch.compile's default backend, got {name!r}")


class CompiledGraph:
    """A graph of torch.compile with its fused ops."""

    def __init__(self, graph_module: fx.GraphModule, fusions: Fusions) -> None:
        self._as_it_is = graph_module.forward
        self._all = _WithPackedWeights(graph_module, fusions.found, fusions)
        without = [fusion for fusion in fusions.found if fusion.grads is False]
        self._without_gradients = _WithPackedWeights(graph_module, without, fusions) if without else None
        self._weights = _indices(graph_module.graph, [f for f in fusions.found if f.grads is not False])
        self._turns_gradients_on = any(fusion.grads for fusion in fusions.found)

    def __call__(self, *inputs: Any) -> Any:
        """What the captured graph returns for its inputs, among which are the weights."""
        program: _WithPackedWeights | None = self._all
        if self._turns_gradients_on or torch.is_grad_enabled():
            for i in self._weights:
                if inputs[i].requires_grad:
                    program = self._without_gradients
                    break
        run = program.ready(inputs) if program is not None and is_unobserved() else None
        return self._as_it_is(*inputs) if run is None else run(*inputs)


def _indices(graph: fx.Graph, fusions: Sequence[Fusion]) -> list[int]:
    """Which of the graph's inputs are weights of these fused ops."""
    weights = {node for fusion in fusions for node in fusion.weights.values()}
    return [i for i, node in enumerate(graph.find_nodes(op="placeholder")) if node in weights]


class _WithPackedWeights:
    """A graph in which some fused ops have packed weights."""

    def __init__(self, graph_module: fx.GraphModule, fusions: Sequence[Fusion], found: Fusions) -> None:
        graph = graph_module.graph
        inputs = list(graph.find_nodes(op="placeholder"))
        self._fusions = fusions
        self._indices = _indices(graph, fusions)
        self._names = [inputs[i] for i in self._indices]
        self._written = [i for i, node in enumerate(inputs) if node in found.written]
        self._forward = compiled(fused_graph(graph, fusions, found.pure))
        self._nested = {name: getattr(graph_module, name) for name in _attributes(graph)}
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._misses = 0
        self._last_seen: Snapshot | None = None

    def ready(self, inputs: tuple[Any, ...]) -> Callable[..., Any] | None:
        """The program for the weights among the inputs; None where packing them is impossible, or not worth while."""
        weights = [inputs[i] for i in self._indices]
        state = self._state
        if state is not None and state.snapshot.matches(weights):
            self._misses = 0
        else:
            state = self._renewed(weights)
        if state is None or (self._written and any(_storage(inputs[i]) in state.storages for i in self._written)):
            return None
        return state.run

    def _renewed(self, weights: list[torch.Tensor]) -> "_State | None":
        if not all(has_version(weight) for weight in weights):
            return None
        snapshot = Snapshot(weights)
        with self._lock:
            again = self._last_seen is not None and self._last_seen.matches(weights)
            self._last_seen = snapshot
            if self._misses >= _MISSES and not again:
                return None  # they change in every call
            self._misses += 1
            self._state = self._bound(weights, snapshot)
            return self._state

    def _bound(self, weights: list[torch.Tensor], snapshot: Snapshot) -> "_State":
        values = dict(self._nested)
        by_node = dict(zip(self._names, weights, strict=True))
        for i, fusion in enumerate(self._fusions):
            given = {attribute: by_node[node] for attribute, node in fusion.weights.items()}
            op = Bound(fusion.op, *fold(fusion.arguments, given))
            if op.kernel is None and weights[0].is_cpu:
                return _State(snapshot, None, set())
            values[f"fused_{i}"] = with_fast_path(op)
        run = partial(self._forward, SimpleNamespace(**values))
        return _State(snapshot, run, {_storage(weight) for weight in weights})


@dataclass
class _State:
    """What holds for weights as `snapshot` saw them."""

    snapshot: Snapshot
    run: Callable[..., Any] | None  # the program; None where an op has no kernel for these weights
    storages: set[int | None]  # addresses of their memory


def _storage(value: Any) -> int | None:
    is_strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return value.untyped_storage().data_ptr() if is_strided else None


def _attributes(graph: fx.Graph) -> set[str]:
    """Attributes of its module that a graph reads: nested graphs, and modules that dynamo did not enter."""
    nodes = [node for op in ("get_attr", "call_module") for node in graph.find_nodes(op=op)]
    return {str(node.target).partition(".")[0] for node in nodes}
