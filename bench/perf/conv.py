"""One convolution with batch-norm and ReLU: layers of which large networks are made.

The operations are counted as those of a direct convolution, so Winograd's share of the ceiling may be over 100 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from torch import nn

from fastgraph.bench.cases import Built, Case
from fastgraph.bench.perf import grid as grids
from fastgraph.bench.perf.result import Result
from fastgraph.bench.perf.target import CHEAP_PEERS, Target
from fastgraph.bench.plan import Plan
from fastgraph.bench.zoo.entry import normal
from fastgraph.bench.zoo.weights import informative

GROUP = "conv"
BATCHES, QUICK_BATCHES = (1, 16), (1,)
STATISTICS_OF = 2  # samples, for batch-norms
RATIOS = {"3x3": 1.35, "1x1": 1.1, "depthwise": 1.05, "stem": 1.1}  # of the networks that they make up
GEOMETRIC_MEAN = 1.2
PLAN = Plan(rounds=11, block_s=0.02, warm_up_s=0.1, case_s=1.0)


@dataclass(frozen=True)
class Layer:
    """A convolution that keeps the map's ``size`` but for its ``stride``."""

    kind: str  # a key of RATIOS
    inputs: int
    outputs: int
    size: int  # of the input's sides
    kernel_size: int
    stride: int = 1

    @property
    def name(self) -> str:
        """The layer in the report: "3x3 64→64 @56", "depthwise 5x5/2 240 @28"."""
        step = f"/{self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel_size}x{self.kernel_size}{step}"
        if self.kind == "depthwise":
            return f"depthwise {kernel} {self.inputs} @{self.size}"
        return f"{'stem ' if self.kind == 'stem' else ''}{kernel} {self.inputs}→{self.outputs} @{self.size}"

    def make(self) -> nn.Module:
        """The module."""
        groups = self.inputs if self.kind == "depthwise" else 1
        convolution = nn.Conv2d(
            self.inputs, self.outputs, self.kernel_size, self.stride, self.kernel_size // 2, groups=groups, bias=False
        )
        return nn.Sequential(convolution, nn.BatchNorm2d(self.outputs), nn.ReLU())


LAYERS = (  # ResNet's, MobileNetV2's and EfficientNet's
    Layer("3x3", 64, 64, 56, 3),
    Layer("3x3", 128, 128, 28, 3),
    Layer("3x3", 256, 256, 14, 3),
    Layer("3x3", 512, 512, 7, 3),
    Layer("3x3", 128, 256, 28, 3, 2),
    Layer("1x1", 64, 256, 56, 1),
    Layer("1x1", 256, 64, 56, 1),
    Layer("1x1", 1024, 256, 14, 1),
    Layer("1x1", 512, 2048, 7, 1),
    Layer("1x1", 24, 144, 56, 1),
    Layer("1x1", 320, 1280, 7, 1),
    Layer("depthwise", 96, 96, 112, 3, 2),
    Layer("depthwise", 144, 144, 56, 3),
    Layer("depthwise", 384, 384, 14, 3),
    Layer("depthwise", 960, 960, 7, 3),
    Layer("depthwise", 240, 240, 28, 5, 2),
    Layer("stem", 3, 64, 224, 7, 2),
    Layer("stem", 3, 32, 224, 3, 2),
)


def grid(quick: bool = False) -> list[Target]:
    """All cells, layer by layer, so that weights are packed once."""
    return [_target(layer, batch) for layer in LAYERS for batch in (QUICK_BATCHES if quick else BATCHES)]


def build_layer(layer: Layer, batch: int) -> Built:
    """The layer, and normally distributed maps for it."""
    return Built(_module(layer), normal(layer.inputs, layer.size, layer.size)(batch))


def summary(results: Sequence[Result]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The grid in a few lines, with what goes into ``perf.json``."""
    if lines := grids.summary(GROUP, results, GEOMETRIC_MEAN, results):
        yield lines[0], {GROUP: "layers", **lines[1]}


def _target(layer: Layer, batch: int) -> Target:
    case = Case(layer.name, batch, partial(build_layer, layer))
    return Target(GROUP, case, RATIOS[layer.kind], "fma", peers=CHEAP_PEERS, plan=PLAN)


@lru_cache(maxsize=1)
def _module(layer: Layer) -> nn.Module:
    return informative(layer.make, normal(layer.inputs, layer.size, layer.size)(STATISTICS_OF))
