"""Runs graphs node by node: what each one gives, and how long it takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.constants import constant_nodes
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op

WARM_UP = 1
LEAD_IN, PAUSE_S = 2, 0.02
ROUNDS = (5, 30)  # at least and at most
BUDGET_S = 3.0


@dataclass
class Recorded:
    """Of one run: each node's value, tensors as meta tensors of the same shape and dtype; the constants themselves."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)


class _Recorder(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.recorded, self._constant = Recorded(), constant_nodes(graph_module.graph)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.recorded.values[n] = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), result)
        if n in self._constant:
            self.recorded.constants[n] = result
        return result


class _Timer(fx.Interpreter):
    """Runs fused ops with their weights packed, as the direct engine does."""

    def __init__(self, graph_module: fx.GraphModule, constants: dict[fx.Node, Any], inputs: Sequence[Any]) -> None:
        super().__init__(graph_module)
        self._constants, self._inputs = constants, inputs
        self._on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in inputs)
        self.seconds: dict[fx.Node, float] = {}
        self._ready: dict[fx.Node, Any] = {}
        for node in graph_module.graph.nodes:
            op = Op.of(node.target)
            if op is None:
                continue
            source = node.args[0]
            if all(n in constants for n in node.all_input_nodes if n is not source):
                arguments = fx.map_arg(node.args[1:], lambda n: constants[n])
                self._ready[node] = functools.partial(self._bound, Bound(op, *arguments), source)

    def once(self) -> None:
        """One run; an environment serves one, which takes values out of it when they are no longer needed."""
        self.run(*self._inputs, initial_env=dict(self._constants))

    def run_node(self, n: fx.Node) -> Any:
        call = self._ready.get(n) or functools.partial(super().run_node, n)
        start = time.perf_counter()
        result = call()
        if self._on_gpu:
            torch.cuda.synchronize()
        self.seconds[n] = time.perf_counter() - start
        return result

    def _bound(self, call: Bound, source: fx.Node) -> Any:
        return call(self.env[source])


def record(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Recorded:
    """Runs the graph once."""
    recorder = _Recorder(graph_module)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.recorded


def measure(
    runs: Sequence[tuple[fx.GraphModule, Recorded]],
    inputs: Sequence[Any],
    compiled: Callable[[], list[float]] | None = None,
) -> tuple[list[dict[fx.Node, float]], list[float], int]:
    """Median seconds of each operator of each graph, those that ``compiled`` tells, and of how many rounds.

    Every round runs each graph once, node by node, on the threads that torch has, so that a change in the machine's
    speed hits all alike. Threads of one library spin for milliseconds after its work, on the cores that the next graph
    needs: each waits for that, and runs twice untimed, ahead of its turn. Constants are not computed again. On a GPU
    each node is waited for.
    """
    samples: list[dict[fx.Node, list[float]]] = [{} for _ in runs]
    kernels: list[list[float]] = []
    started = time.perf_counter()
    done = -WARM_UP
    with torch.no_grad():
        timers = [_Timer(graph_module, recorded.constants, inputs) for graph_module, recorded in runs]
        while done < ROUNDS[0] or (done < ROUNDS[1] and time.perf_counter() - started < BUDGET_S):
            for sample, timer in zip(samples, timers, strict=True):
                _turn(timer.once)
                if done >= 0:
                    for node, seconds in timer.seconds.items():
                        sample.setdefault(node, []).append(seconds)
            if compiled is not None:
                kernels.append(_turn(compiled))
            done += 1
    operators = [{n: median(s) for n, s in sample.items() if n.op == "call_function"} for sample in samples]
    return operators, [median(several) for several in zip(*kernels[WARM_UP:], strict=True)], done


def _turn(run: Callable[[], Any]) -> Any:
    """What the last of several runs gives, which finds threads of its own awake and those of others asleep."""
    time.sleep(PAUSE_S)
    for _ in range(LEAD_IN):
        run()
    return run()
