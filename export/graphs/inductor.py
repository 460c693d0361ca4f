"""What TorchInductor makes of a graph: its kernels, and the nodes of the graph in each.

Inductor is stopped once it has fused, before it writes code: that takes a second or two and no compiler. It keeps the
graph's nodes with everything it derives from them, in ``origins`` and ``meta["from_node"]`` (torch 2.14).

Times need the code itself: ``compiled.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fastgraph.cost import operations
from fastgraph.export.graphs.nodes import Edge, Graph, Node

TITLE = "torch.compile (Inductor)"
_LIBRARY = ("convolution", "mm", "addmm", "bmm")


class _Stop(Exception):
    """Inductor has come as far as it is needed."""


def kernels(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Graph:
    """A node a kernel; a graph without nodes that says why, where Inductor does not get that far."""
    found: list[Any] = []

    def keep(scheduled: list[Any]) -> list[Any]:
        found.extend(read(scheduled))
        raise _Stop

    try:
        with torch.no_grad(), configured(keep):
            torch._inductor.compile(graph_module, list(inputs))
    except Exception as error:
        if not found:
            cause = (str(error).strip().splitlines() or ["no message"])[0]
            return Graph(TITLE, missing=f"Inductor gave up: {type(error).__name__}: {cause}")
    if not found:
        return Graph(TITLE, missing="Inductor made no kernels of this graph")
    nodes, edges = zip(*found, strict=True)
    return Graph(TITLE, nodes, tuple(edge for several in edges for edge in several))


@contextmanager
def configured(hook: Any, more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inductor calls ``hook`` with what it fused, and takes nothing from a cache; ``more`` of its settings."""
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    patches = {
        "_post_fusion_custom_pass": hook,
        "fx_graph_cache": False,
        "fx_graph_remote_cache": False,
        **(more or {}),
    }
    with inductor.patch(patches), functorch.patch(enable_autograd_cache=False):
        yield


def read(scheduled: list[Any]) -> Iterator[tuple[Node, list[Edge]]]:
    """Every kernel, with the edges that lead to it."""
    producer = {name: node.get_name() for node in scheduled for name in node.get_buffer_names()}
    for node in scheduled:
        parts = [part.node for part in node.get_nodes() if part.node is not None]
        if not parts:
            continue
        reads = {producer[d.name] for d in node.read_writes.reads if d.name in producer} - {node.get_name()}
        origins = list(dict.fromkeys(name for part in parts for name in _origins(part)))
        last = parts[-1]
        size = [int(n) for n in last.get_size()] if hasattr(last, "get_size") else []
        yield (
            Node(
                name=node.get_name(),
                operator=_kind(node, last),
                shape=tuple(size),
                dtype=str(last.get_dtype()).removeprefix("torch.") if size else "",
                flops=_operations(node, parts),
                bytes=int(node.get_read_write_buffers_sizes()),
                origins=tuple(origins),
            ),
            [Edge(source, node.get_name()) for source in sorted(reads)],
        )


def _operations(scheduled: Any, parts: list[Any]) -> int:
    """Those of the nodes in it; a loop computes none of a library call whose operands it arranges."""
    sources = dict.fromkeys(source for part in parts for source in _sources(part))
    return sum(operations(s) for s in sources if scheduled.is_extern() or _name(s) not in _LIBRARY)


def _kind(scheduled: Any, last: Any) -> str:
    """ "library addmm", or the operators that a generated loop fuses."""
    if scheduled.is_extern():
        return f"library {str(last.get_kernel_name() or '').rpartition('.')[2]}"
    names = list(dict.fromkeys(sorted(_name(o) for part in scheduled.get_nodes() for o in _sources(part.node))))
    layout = all(name in _LIBRARY for name in names)  # a loop cannot be one of these: it arranges their operands
    return ("layout for " if layout else "loop ") + " ".join(names)


def _name(node: fx.Node) -> str:
    """The operator's; for Inductor's own (prims) that of the one it stands for."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "prims":
        target = node.meta.get("original_aten", target)
    return str(getattr(target, "_opname", node.name))


def _sources(part: Any) -> list[fx.Node]:
    """The nodes of Inductor's graph in one part. A library call also names those of its inputs: only its own counts."""
    own = getattr(part, "origin_node", None)
    if own is not None and type(part).__name__.startswith("Extern"):
        return [own]
    return [origin for origin in part.origins if origin.op == "call_function"]


def _origins(part: Any) -> list[str]:
    """Names in the graph that Inductor was given, in its order."""
    names = []
    for node in sorted(_sources(part), key=lambda n: n.name):
        history = node.meta.get("from_node")
        name = node.name
        while history:
            name, history = history[-1].name, history[-1].from_node
        names.append(name)
    return names
