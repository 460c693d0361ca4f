"""What a rewrite rule is, and what it reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from fastgraph.aliases import argument, is_mutation

aten = torch.ops.aten
__all__ = ["Match", "Refusal", "Rule", "argument", "aten", "calls", "is_mutation", "only_user", "origins", "value"]


@dataclass(frozen=True)
class Refusal:
    """A place where a rule's pattern was found and its check failed."""

    rule: str
    node: str  # the eager node where the pattern is anchored
    reason: str


@dataclass
class Match:
    """A place where a rule's pattern was found. `reason` says why it may not be rewritten; None if it may."""

    nodes: list[fx.Node]  # what the rewrite replaces, in graph order; the last one's value is the pattern's value
    parts: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class Rule(Protocol):
    """Pattern and check in `match`, the rewrite in `replace`. Exact in real arithmetic."""

    name: str

    def match(self, node: fx.Node) -> Match | None:
        """The pattern anchored at `node`, with a reason where the check refuses it; None where it is not there."""

    def replace(self, graph: fx.Graph, match: Match) -> fx.Node:
        """Builds the replacement before the last matched node and returns the node that takes over its value."""


def calls(node: Any, *targets: Any) -> bool:
    """Whether `node` calls one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def only_user(node: fx.Node) -> fx.Node | None:
    """The single node that uses `node`'s value, once or more; None if there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def value(node: Any) -> Any:
    """The fake tensor that the capture recorded for a node."""
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def origins(nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the eager nodes that these nodes stand for."""
    return list(dict.fromkeys(name for node in nodes for name in node.meta.get("origins", [node.name])))
