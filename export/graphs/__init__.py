"""Pictures of a model's graphs: captured, rewritten, and what Inductor makes of it."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import nn

import fastgraph
from export.graphs import inductor, text
from export.graphs.dot import INSTALL, have_dot, render, to_dot
from export.graphs.nodes import Edge, Graph, Node, Picture, read
from export.graphs.page import to_html
from export.graphs.run import measure, record
from fastgraph.capture import flatten_inputs

__all__ = ["INSTALL", "Edge", "Graph", "Node", "Picture", "draw", "have_dot", "render", "to_dot", "to_html"]


def draw(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", measured: bool = False) -> Picture:
    """The graphs of ``model`` as data.

    Args:
        model: what ``fastgraph.optimize`` takes, or its result.
        example_inputs: of one call; all shapes and figures are for them.
        name: of the picture, by default the model's class.
        measured: times every operator of the captured and the rewritten graph.
    """
    optimized = model if isinstance(model, fastgraph.OptimizedModule) else None
    if optimized is None:
        optimized = fastgraph.optimize(model, example_inputs, verify=False)
    flat = flatten_inputs(optimized.captured, example_inputs, {})
    modules = [optimized.captured.graph_module, optimized.rewritten.graph_module]
    recorded = [record(module, flat) for module in modules]
    seconds: list[Any] = [None, None]
    notes = [f"CPU kernels: {fastgraph.cpu_capability()}, torch {torch.__version__}, {platform.machine()}"]
    if measured:
        seconds, rounds = measure(list(zip(modules, recorded, strict=True)), flat)
        notes.append(
            f"Times: median of {rounds} rounds, both graphs node by node in each, "
            f"{text.threads(torch.get_num_threads())}; Python's part of a call is in them. "
            "Inductor's kernels are not timed."
        )
    titles = ("Captured (eager)", "Rewritten (fastgraph)")
    eager, rewritten = (
        read(title, module.graph, values, timed)
        for title, module, values, timed in zip(titles, modules, recorded, seconds, strict=True)
    )
    kernels = inductor.kernels(optimized.captured.graph_module, flat)
    return Picture(name or type(model).__name__, eager, rewritten, kernels, tuple(notes))
