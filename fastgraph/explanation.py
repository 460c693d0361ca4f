"""What became of each node of the eager graph, as a table."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

import torch
from torch import fx

from fastgraph.capture import Captured, sizes
from fastgraph.kernels.cuda import dispatch as cuda
from fastgraph.kernels.native import cpu_capability, takes
from fastgraph.rewrite import Rewritten
from fastgraph.rewrite.rule import origins


@dataclass(frozen=True)
class Row:
    """One operator of the eager graph."""

    node: str  # its name in the captured graph
    operator: str  # "aten.linear.default"
    shape: str  # of its result, a star for a free size
    becomes: str  # name of the node that stands for it now; "" where it is no longer needed
    kernel: str  # what runs that node: "mlp (avx2)", "ATen"
    reason: str  # why a rule that could have taken it did not, or which rule simplified it


class Explanation:
    """Rows in the order of the eager graph. `print()` it for a table; iterate it for the rows."""

    def __init__(self, rows: list[Row], notes: list[str]) -> None:
        self.rows = rows
        self.notes = notes

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("node", "operator", "shape", "becomes", "kernel", "reason")
        for row in self.rows:
            table.add_row(row.node, row.operator, row.shape, row.becomes or "-", row.kernel, row.reason)
        text = StringIO()
        console = Console(file=text, width=160)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)
        return text.getvalue().rstrip("\n")

    __repr__ = __str__


def explain(captured: Captured, rewritten: Rewritten, notes: list[str]) -> Explanation:
    """The table for a captured graph and what it was rewritten to."""
    becomes = {name: node for node in rewritten.graph.nodes for name in origins([node])}
    fused = [n for n in rewritten.graph.nodes if str(n.target).startswith("fastgraph.")]
    kernel_of, shortfall = {}, {}  # what runs a fused node, and why nothing better does
    for n in fused:
        kernel_of[n.name], shortfall[n.name] = _kernel(n)
    reasons: dict[str, list[str]] = {}
    for refusal in rewritten.refusals:
        reasons.setdefault(refusal.node, []).append(f"not {refusal.rule}: {refusal.reason}")
    rows = []
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        new = becomes.get(node.name)
        reason = reasons.get(node.name, [])
        if new is not None and shortfall.get(new.name):
            reason = [*reason, shortfall[new.name]]
        if new is not None and len(origins([new])) > 1 and new.name not in kernel_of:
            reason = [f"by rule {new.meta['rule']}", *reason]
        kernel = "" if new is None else kernel_of.get(new.name, "ATen")
        rows.append(Row(node.name, str(node.target), _shape(node), new.name if new else "", kernel, "; ".join(reason)))
    return Explanation(rows, notes)


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return sizes(value) if isinstance(value, torch.Tensor) else ""


def _kernel(node: fx.Node) -> tuple[str, str]:
    """What runs a fused node, "mlp (avx2)" or ATen where no kernel takes it; on CUDA also why no better."""
    name = str(node.target).split(".")[1]
    if node.meta["val"].device.type == "cuda":
        kernels, reason = cuda.describe(name, fx.map_arg(node.args, lambda n: n.meta["val"]))
        return f"{name} ({kernels})", reason
    weights = [n.meta["val"] for n in node.all_input_nodes[1:]]
    dtype = weights[0].dtype
    if takes(*weights):
        return f"{name} ({cpu_capability()}{'' if dtype is torch.float32 else ', bfloat16 weights'})", ""
    return f"{name} (ATen, {str(dtype).removeprefix('torch.')} on {weights[0].device.type})", ""
