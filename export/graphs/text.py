"""Figures in words."""

from __future__ import annotations

from fastgraph.export.graphs.nodes import Graph, Node


def shape(node: Node) -> str:
    """[1, 16, 718, 478] float32"""
    return f"{list(node.shape)} {node.dtype}" if node.dtype else ""


def count(number: float, unit: str) -> str:
    """296.5 MFLOP: three digits and a prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def seconds(value: float) -> str:
    """5.43 ms"""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def threads(number: int) -> str:
    """1 thread, 2 threads"""
    return f"{number} thread" + ("" if number == 1 else "s")


def figures(graph: Graph, node: Node) -> str:
    """5.4 ms (45 %) · 296 MFLOP · 28 MB; empty where there are none."""
    parts = []
    share = graph.share(node)
    if node.seconds is not None and share is not None:
        parts.append(f"{seconds(node.seconds)} ({100 * share:.0f} %)")
    if node.flops:
        parts.append(count(node.flops, "FLOP"))
    if node.bytes:
        parts.append(count(node.bytes, "B"))
    return " · ".join(parts)


def total(graph: Graph) -> str:
    """5 steps · 2.1 ms · 2.3 GFLOP · 3 MB"""
    working = [node for node in graph.nodes if node.operator not in ("input", "output", "buffer")]
    parts = [f"{len(working)} step" + ("" if len(working) == 1 else "s")]
    if graph.seconds is not None:
        parts.append(seconds(graph.seconds))
    parts.append(count(sum(node.flops for node in working), "FLOP"))
    parts.append(count(sum(node.bytes for node in working), "B"))
    return " · ".join(parts)
