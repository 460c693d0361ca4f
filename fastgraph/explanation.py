"""What became of each node of the eager graph, as a table."""

import operator
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import is_mutation, nested_graphs
from fastgraph.captured import Captured, sizes
from fastgraph.constants import constant_nodes
from fastgraph.kernels.library import Op, Running
from fastgraph.kernels.native import cpu_capability
from fastgraph.rewrite import Rewritten
from fastgraph.rewrite.rule import aten, origins
from fastgraph.same_bits import same_bits

_ATEN = Running("ATen", False, "")
_VARYING = "its weights vary, or are not fp32 on the CPU"
_CONVOLUTIONS = {
    aten.conv1d: _VARYING,
    aten.conv2d: _VARYING,
    aten.conv3d: "no kernel for a convolution over three axes",
    aten.conv_transpose1d: "no kernel for a transposed convolution over one axis",
    aten.conv_transpose2d: "no kernel for a transposed convolution whose kernel is not as large as its stride",
    aten.conv_transpose3d: "no kernel for a transposed convolution over three axes",
}


@dataclass(frozen=True)
class Row:
    """One operator of the eager graph."""

    node: str  # its name in the captured graph, behind that of the nested graph that it is in: "true_graph_0.linear"
    operator: str  # "aten.linear.default"
    shape: str  # of its result, a star for a free size
    becomes: str  # name of the node that stands for it now; "" where it is no longer needed
    kernel: str  # what runs that node: "mlp (avx2)", "ATen"
    reason: str  # why a rule that could have taken it did not, or which rule simplified it
    flops: int = 0  # at the example's sizes
    is_fused: bool = False  # whether a kernel of this package runs it


class Explanation:
    """Rows in the order of the eager graph. `print()` it for a table; iterate it for the rows."""

    def __init__(self, rows: list[Row], notes: list[str]) -> None:
        self.rows = rows
        self.notes = notes

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fused_share(self) -> float | None:
        """Share of the FLOPs that are in fused kernels, 0..1; None where there are none."""
        total = sum(row.flops for row in self.rows)
        return sum(row.flops for row in self.rows if row.is_fused) / total if total else None

    @property
    def summary(self) -> str:
        """The first line: how much of the work is in fused kernels."""
        fused, aten = [r for r in self.rows if r.is_fused], [r for r in self.rows if r.kernel == "ATen"]
        share = "none" if self.fused_share is None else f"{100 * self.fused_share:.0f} %"
        return (
            f"{share} of the FLOPs are in fused kernels: {len(fused)} of {len(self.rows)} operators; "
            f"{len(aten)} stay in ATen"
        )

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("node", "operator", "shape", "becomes", "kernel", "reason")
        for row in self.rows:
            table.add_row(row.node, row.operator, row.shape, row.becomes or "-", row.kernel, row.reason)
        text = StringIO()
        console = Console(file=text, width=160)
        console.print(self.summary, highlight=False)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)
        return text.getvalue().rstrip("\n")

    __repr__ = __str__


def explain(
    captured: Captured, rewritten: Rewritten, notes: list[str], planned: Mapping[str, str] | None = None
) -> Explanation:
    """The table for a captured graph and what it was rewritten to.

    planned: names of its nodes that are ATen's operators and run in native plans, with the kernels' names.
    """
    rows = _rows(captured.graph, rewritten, "", planned or {})
    return Explanation(rows, [*notes[:1], same_bits(rewritten, planned or {}), *notes[1:]])


def _rows(graph: fx.Graph, rewritten: Rewritten, prefix: str, planned: Mapping[str, str]) -> list[Row]:
    """The rows of a graph and of those nested in it."""
    becomes = {name: node for node in rewritten.graph.nodes for name in origins([node])}
    fused = {node: op for node in rewritten.graph.nodes if (op := Op.of(node.target)) is not None}
    running = {node: op.running(*fx.map_arg(node.args, lambda n: n.meta["val"])) for node, op in fused.items()}
    for node in rewritten.graph.nodes:
        if node.name in planned:
            running[node] = Running(f"{planned[node.name]} ({cpu_capability()})", True, "")
    constants = constant_nodes(rewritten.graph)
    refusals: dict[str, list[str]] = {}
    for refusal in rewritten.refusals:
        refusals.setdefault(refusal.node, []).append(f"not {refusal.rule}: {refusal.reason}")
    rows = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        new = becomes.get(node.name)
        run_by = Running("", False, "") if new is None else running.get(new, _ATEN)
        reasons = refusals.get(node.name, []) + ([run_by.reason] if run_by.reason else [])
        if run_by == _ATEN and not reasons:
            reasons = ["computed once, from parameters" if new in constants else _default_reason(node)]
        if new is not None and len(origins([new])) > 1 and new not in fused:
            reasons = [f"by rule {new.meta['rule']}", *reasons]
        becomes_name = f"{prefix}{new.name}" if new else ""
        rows.append(_row(prefix, node, becomes_name, run_by, "; ".join(dict.fromkeys(reasons))))
        rows += _nested_rows(node, rewritten, prefix)
    return rows


def _row(prefix: str, node: fx.Node, becomes: str, run_by: Running, reason: str) -> Row:
    from fastgraph.cost import operations  # torch's table of FLOPs imports Triton, which takes 0.15 s

    flops = 0
    with suppress(Exception):  # some operators have no meta implementation, and count as none
        flops = operations(node)
    name, kind = f"{prefix}{node.name}", str(node.target)
    return Row(name, kind, _shape(node), becomes, run_by.kernel, reason, flops, run_by.is_fused)


def _nested_rows(node: fx.Node, rewritten: Rewritten, prefix: str) -> list[Row]:
    rows = []
    for attribute, inner in nested_graphs(node).items():
        name = str(attribute.target)
        if inner is None:
            continue
        within = f"{prefix}{name}."
        if name in rewritten.nested:
            rows += _rows(inner.graph, rewritten.nested[name], within, {})
            continue
        reason = f"inside {node.target}, which is left as it is"
        inside = [n for n in inner.graph.nodes if n.op == "call_function"]
        rows += [_row(within, n, f"{within}{n.name}", _ATEN, reason) for n in inside]
    return rows


def _default_reason(node: fx.Node) -> str:
    """Why an operator that no rule looked at stays in ATen."""
    target: Any = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return "runs the graphs below"
    if target is operator.getitem:
        return "picks one of several results"
    if not isinstance(target, torch._ops.OpOverload):
        return "switches a mode" if node.meta.get("val") is None else "computes with sizes"
    if target.overloadpacket in _CONVOLUTIONS:
        return _CONVOLUTIONS[target.overloadpacket]
    if is_mutation(node):
        return "writes in place"
    if any(result.alias_info is not None for result in target._schema.returns):
        return "a view"
    return f"no kernel for {str(target).removesuffix('.default')}"


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return sizes(value) if isinstance(value, torch.Tensor) else ""
