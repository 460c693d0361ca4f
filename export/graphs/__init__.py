"""Pictures of a model's graphs: captured, rewritten, and what Inductor makes of it."""

from __future__ import annotations

import functools
import platform
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

import fastgraph
from fastgraph.captured import flatten_inputs
from fastgraph.export.graphs import inductor, text
from fastgraph.export.graphs.compiled import Compiled
from fastgraph.export.graphs.dot import INSTALL, have_dot, render, to_dot
from fastgraph.export.graphs.nodes import Edge, Graph, Node, Picture, read
from fastgraph.export.graphs.page import to_html
from fastgraph.export.graphs.run import measure, record

__all__ = ["INSTALL", "Edge", "Graph", "Node", "Picture", "draw", "have_dot", "render", "to_dot", "to_html"]


def draw(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", measured: bool = False) -> Picture:
    """The graphs of ``model`` as data.

    Args:
        model: what ``fastgraph.optimize`` takes, or its result.
        example_inputs: of one call; all shapes and figures are for them.
        name: of the picture, by default the model's class.
        measured: times every operator of the captured and the rewritten graph, and Inductor's kernels where its code
            can be compiled, which takes 10 to 30 seconds.
    """
    optimized = model if isinstance(model, fastgraph.OptimizedModule) else None
    if optimized is None:
        optimized = fastgraph.optimize(model, example_inputs, verify=False)
    flat = flatten_inputs(optimized.captured, example_inputs, {})
    modules = [optimized.captured.graph_module, optimized.rewritten.graph_module]
    recorded = [record(module, flat) for module in modules]
    seconds: list[Any] = [None, None]
    versions = f"fastgraph {fastgraph.__version__}, torch {torch.__version__}"
    notes = [f"CPU kernels: {fastgraph.cpu_capability()}, {versions}, {platform.machine()}"]
    kernels = None
    if measured:
        compiled, why_not = _compiled(optimized.captured.graph_module, flat)
        times_of = None if compiled is None else functools.partial(compiled.seconds, flat)
        seconds, times, rounds = measure(list(zip(modules, recorded, strict=True)), flat, times_of)
        if compiled is not None:
            timed_nodes = zip(compiled.graph.nodes, times, strict=True)
            kernels = replace(compiled.graph, nodes=tuple(replace(node, seconds=time) for node, time in timed_nodes))
        notes += [
            f"Times: median of {rounds} rounds, all graphs in each, {text.threads(torch.get_num_threads())}. "
            "Captured and rewritten: node by node, with Python's part of a call.",
            why_not or "Inductor: by torch's profiler; loops that it writes into one C++ function are one node.",
        ]
    titles = ("Captured (eager)", "Rewritten (fastgraph)")
    eager, rewritten = (
        read(title, module.graph, values, timed)
        for title, module, values, timed in zip(titles, modules, recorded, seconds, strict=True)
    )
    if kernels is None:
        kernels = inductor.kernels(optimized.captured.graph_module, flat)
    return Picture(name or type(model).__name__, eager, rewritten, kernels, tuple(notes))


def _compiled(module: fx.GraphModule, inputs: list[Any]) -> tuple[Compiled | None, str]:
    """Inductor's code, or why it has no times."""
    try:
        return Compiled(module, inputs), ""
    except RuntimeError as error:
        return None, f"Inductor's kernels are not timed: {error}."
