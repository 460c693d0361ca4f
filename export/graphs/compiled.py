"""Inductor's code, compiled and run: the time of each of its kernels, by torch's profiler.

That takes a C++ compiler and, for a reference model, 10 to 30 seconds of it. Loops that Inductor writes into one C++
function are one node here: only together do they have a time (torch 2.14).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any
from unittest.mock import patch

import torch
from torch import fx

from fastgraph.export.graphs.inductor import TITLE, configured, read
from fastgraph.export.graphs.nodes import Edge, Graph, Node
from fastgraph.export.runtime import standard_error

_CALL = "## Call CompiledFxGraph"


class Compiled:
    """``graph``, whose nodes are what runs, one after the other."""

    def __init__(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        """Compiles for inputs of these sizes, on the CPU; RuntimeError, in one line, where that cannot be had."""
        if any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in inputs):
            raise RuntimeError("only those on the CPU are")
        quiet = patch.object(
            logging.getLogger("torch.utils.cpp_extension"), "disabled", True
        )  # CUDA's compiler, no GPU
        with _written() as (found, functions), torch.no_grad(), quiet:
            try:
                self._call: Callable[..., Any] = torch._inductor.compile(graph_module, list(inputs))
            except Exception as error:
                cause = (str(error).strip().splitlines() or ["no message"])[0]
                raise RuntimeError(f"Inductor gave up: {type(error).__name__}: {cause}") from error
        nodes, edges = zip(*found, strict=True) if found else ((), ())
        self.graph = joined(Graph(TITLE, nodes, tuple(edge for several in edges for edge in several)), functions)
        self.seconds(inputs)

    def seconds(self, inputs: Sequence[Any]) -> list[float]:
        """Of each node, in one call; RuntimeError where what ran are not the nodes."""
        profiler = torch.autograd.profiler.profile(use_kineto=False)
        with torch.no_grad(), standard_error(), profiler as profile:  # it prints that there is no GPU
            self._call(*inputs)
        ran = [e for e in profile.function_events or () if e.cpu_parent and e.cpu_parent.name.startswith(_CALL)]
        names = [event.name.partition("_cpp_")[2] for event in ran]
        if names != [_function(node) for node in self.graph.nodes]:
            raise RuntimeError(f"the profiler saw {', '.join(event.name for event in ran) or 'none of them'}")
        return [event.time_range.elapsed_us() * 1e-6 for event in ran]


def joined(graph: Graph, functions: dict[str, str]) -> Graph:
    """The graph with a node a function: ``functions`` by what was scheduled ("op6" is the first of "op6_op7")."""
    name_of = {node.name: functions.get(node.name.partition("_")[0], node.name) for node in graph.nodes}
    nodes = [_one(name, list(parts)) for name, parts in groupby(graph.nodes, lambda node: name_of[node.name])]
    edges = dict.fromkeys(Edge(name_of[edge.source], name_of[edge.target]) for edge in graph.edges)
    return replace(graph, nodes=tuple(nodes), edges=tuple(edge for edge in edges if edge.source != edge.target))


def _one(name: str, parts: list[Node]) -> Node:
    kinds = list(dict.fromkeys(node.operator for node in parts))
    words = dict.fromkeys(word for kind in kinds for word in kind.removeprefix("loop ").split())
    return replace(
        parts[-1],
        name=name,
        operator=kinds[0] if len(kinds) == 1 else "loop " + " ".join(words),
        flops=sum(node.flops for node in parts),
        bytes=sum(node.bytes for node in parts),
        origins=tuple(dict.fromkeys(origin for node in parts for origin in node.origins)),
    )


def _function(node: Node) -> str:
    """The name of a generated function behind "cpp_"; of a library's call none."""
    return "" if node.operator.startswith("library ") else node.name.removeprefix("cpp_")


@contextmanager
def _written() -> Iterator[tuple[list[Any], dict[str, str]]]:
    """What Inductor fuses, and in which C++ function it then writes each scheduled node."""
    from torch._inductor.codegen.cpp import CppScheduling

    found: list[Any] = []
    functions: dict[str, str] = {}
    define = CppScheduling.define_kernel

    def keep(scheduled: list[Any]) -> list[Any]:
        found.extend(read(scheduled))
        return scheduled

    def defined(self: Any, source: Any, nodes: Any, *more: Any, **named: Any) -> str:
        name = str(define(self, source, nodes, *more, **named))
        functions.update((node.get_name(), name) for node in nodes)
        return name

    with configured(keep, {"cpp.enable_kernel_profile": True}), patch.object(CppScheduling, "define_kernel", defined):
        yield found, functions
