"""One Linear with bias and ReLU (the op ``mlp``) over a grid of sizes, alone and directly behind an operator of ATen.

Alone, a product finds its threads and caches as its own last call left them. In a network it follows other operators,
whose threads spin for a while and whose values fill the caches: a kernel can win the one and lose the other.

Behind the operator, every backend's time is that of both, the operator run its own way, and so is the ratio. From the
share of the ceiling the time that the operator takes by itself in eager, measured right after, is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fastgraph.bench.cases import Built, Case
from fastgraph.bench.perf import grid as grids
from fastgraph.bench.perf.result import Result
from fastgraph.bench.perf.target import CHEAP_PEERS, Target
from fastgraph.bench.plan import Plan

GROUP = "gemm"
ROWS = (1, 8, 49, 64, 197, 785, 1024, 4096)
LAYERS = ((96, 384), (256, 256), (384, 1536), (768, 768), (768, 3072), (3072, 768), (1024, 4096), (4096, 1024))
QUICK_ROWS, QUICK_LAYERS = (1, 64, 1024), ((256, 256), (768, 3072), (3072, 768))
MANY_ROWS = 64  # from here on the ceiling counts
RATIO, RATIO_FEW_ROWS, SHARE, GEOMETRIC_MEAN = 1.0, 1.1, 0.85, 1.1
PLAN = Plan(rounds=11, block_s=0.01, warm_up_s=0.1, case_s=0.6)  # 128 cases in about four minutes


class Doubled(nn.Module):
    """The operator in front: it reads and writes as much as any, and no rule takes it into the product."""

    def forward(self, x: Tensor) -> Tensor:
        """``x + x``."""
        return x + x


def grid(quick: bool = False) -> list[Target]:
    """All cells: layer by layer, alone and then behind the operator, by rows, so that weights are packed once."""
    rows, layers = (QUICK_ROWS, QUICK_LAYERS) if quick else (ROWS, LAYERS)
    return [_target(layer, behind, batch) for layer in layers for behind in (False, True) for batch in rows]


def build_linear(inputs: int, outputs: int, behind: bool, batch: int) -> Built:
    """The layer, and normally distributed rows for it."""
    return Built(_linear(inputs, outputs, behind), _rows(batch, inputs))


def build_operator(inputs: int, batch: int) -> Built:
    """The operator by itself, on the same rows."""
    return Built(Doubled().eval(), _rows(batch, inputs))


def summary(results: Sequence[Result]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The grid in a few lines, each part with what goes into ``perf.json``: means, and the worst cells."""
    for place, operator in (("alone", False), ("behind an operator", True)):
        part = [result for result in results if (result.operator is not None) is operator]
        many = [result for result in part if result.report.batch >= MANY_ROWS]
        about = f" ({SHARE:.0%} each)"
        if lines := grids.summary(f"{GROUP} {place}", part, GEOMETRIC_MEAN, many, f"from {MANY_ROWS} rows", about):
            yield lines[0], {GROUP: place, **lines[1]}


def _target(layer: tuple[int, int], behind: bool, batch: int) -> Target:
    inputs, outputs = layer
    name = f"{'x+x, ' if behind else ''}{inputs}→{outputs} relu"
    many = batch >= MANY_ROWS
    return Target(
        GROUP,
        Case(name, batch, partial(build_linear, inputs, outputs, behind)),
        RATIO if many else RATIO_FEW_ROWS,
        "fma",
        SHARE if many else None,
        operator=Case(f"x+x of {inputs}", batch, partial(build_operator, inputs)) if behind else None,
        peers=CHEAP_PEERS,
        plan=PLAN,
    )


@cache
def _linear(inputs: int, outputs: int, behind: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(inputs, outputs), nn.ReLU()
    return nn.Sequential(*((Doubled(),) if behind else ()), *layers).eval()


def _rows(batch: int, inputs: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.randn(batch, inputs)
