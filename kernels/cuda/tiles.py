"""Tiles: how much of the work one program takes. Defaults by shape and architecture, and candidates to measure.

A default has been compiled for every architecture in `architecture.COMPILED` by
`python -m fastgraph.kernels.triton_aot`: it fits the shared memory and spills no register. Which candidate is fastest
only a GPU can say (`kernels.cuda.choices`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastgraph.kernels.cuda.architecture import Architecture
from fastgraph.kernels.cuda.target import Target, padded


@dataclass(frozen=True)
class Tile:
    """Sizes along the three axes of a kernel's matrix product, and how Triton compiles it.

    m, n, k are rows, columns and depth in `linear`; rows, a slice of layer 1's features, depth in `mlp`; pooled pixels,
    output channels, taps in `conv_pool`; output channels, a slice of layer 1's features, taps in `conv_pool_mlp`.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def accumulator_fits(tile: Tile, architecture: Architecture) -> bool:
    """Whether m x n fp32 sums take at most half of the registers that a thread can have."""
    lanes = 64 if architecture.is_amd else 32
    return tile.m * tile.n <= 128 * lanes * tile.warps


def operands_fit(tile: Tile, itemsize: int, architecture: Architecture) -> bool:
    """Whether the operands of all stages fit the shared memory of a block."""
    return tile.stages * (tile.m + tile.n) * tile.k * itemsize <= architecture.shared_a_block


def linear(rows: Any, out_features: int, dtype: torch.dtype, target: Target, softmax: bool) -> Tile:
    """The default for [rows, K] @ [K, out_features]; softmax needs all features in one tile."""
    wide = 64 if dtype.itemsize == 2 else 32  # bytes of one tile row along k: 128
    if softmax:  # on AMD a wave of 64 lanes would find less than 16 bytes a lane in a smaller share
        return Tile(16, padded(out_features), wide, 2 if target.architecture.is_amd else 4, 2)
    if rows <= 16:
        return Tile(16, 32, 2 * wide, 4, 3)  # few rows: as many programs as possible share the weights
    kind = target.kind(dtype)
    if rows <= 512:
        return Tile(64, 64, wide, 8 if kind == "tf32x3" else 4, 3)
    if kind in ("ieee", "tf32x3"):
        return Tile(64, 64, wide, 8, 2)
    return Tile(128, 128, wide, 8, 3 if dtype.itemsize == 2 else 2)


def linear_candidates(
    rows: int, out_features: int, dtype: torch.dtype, target: Target, softmax: bool
) -> Iterator[Tile]:
    """The default and what else might be faster, without what cannot fit."""
    default = linear(rows, out_features, dtype, target, softmax)
    yield default
    for m in (16, 32, 64, 128, 256):
        for n in (padded(out_features),) if softmax else (32, 64, 128, 256):
            for k in (32, 64, 128):
                for warps, stages in ((4, 3), (4, 4), (8, 2), (8, 3)):
                    tile = Tile(m, n, k, warps, stages)
                    useful = m <= max(16, 2 * rows) and (softmax or n <= 2 * padded(out_features))
                    fits = accumulator_fits(tile, target.architecture)
                    fits &= operands_fit(tile, dtype.itemsize, target.architecture)
                    if tile != default and useful and fits:
                        yield tile


def mlp(dtype: torch.dtype, target: Target) -> Tile:
    """The default for a whole chain."""
    if dtype.itemsize == 4:  # without matrix instructions 32 rows spill on sm_80, sm_90 and sm_120
        if target.architecture.number == 75:  # slices of 64 pass its 64 KiB of shared memory; a depth of 32 spills
            return Tile(16, 32, 16, 8, 2)
        return Tile(16 if target.precision == "ieee" else 32, 64, 32, 8, 2)
    return Tile(64, 64, 64, 8, 2)


def mlp_candidates(widest: int, dtype: torch.dtype, target: Target) -> Iterator[Tile]:
    """The default and what else might be faster, without what cannot fit."""
    default = mlp(dtype, target)
    yield default
    for m in (16, 32, 64, 128):
        for n in (64, 128):
            for k in (32, 64):
                for warps, stages in ((4, 2), (8, 2), (8, 3)):
                    tile = Tile(m, n, k, warps, stages)
                    held = Tile(m, widest + n, k, warps, stages)  # two accumulators at once
                    fits = accumulator_fits(held, target.architecture)
                    fits &= operands_fit(tile, dtype.itemsize, target.architecture)
                    if tile != default and fits:
                        yield tile


def conv_pool(out_channels: int, taps: int, dtype: torch.dtype, target: Target) -> Tile:
    """The default for a convolution of `taps` = C * kernel_h * kernel_w weights a channel."""
    return Tile(64, min(padded(out_channels), 64), min(padded(taps), 32 if dtype.itemsize == 4 else 64), 4, 2)


def conv_pool_candidates(out_channels: int, taps: int, dtype: torch.dtype, target: Target) -> Iterator[Tile]:
    """The default and what else might be faster, without what cannot fit."""
    default = conv_pool(out_channels, taps, dtype, target)
    yield default
    for m in (32, 64, 128, 256):
        for n in sorted({min(padded(out_channels), limit) for limit in (32, 64, 128)}):
            for k in sorted({min(padded(taps), limit) for limit in (32, 64)}):
                for warps, stages in ((4, 1), (4, 2), (8, 2)):
                    tile = Tile(m, n, k, warps, stages)
                    fits = accumulator_fits(tile, target.architecture)
                    fits &= operands_fit(tile, dtype.itemsize, target.architecture)
                    if tile != default and fits:
                        yield tile


def conv_pool_mlp(out_channels: int, taps: int, dtype: torch.dtype, target: Target) -> Tile:
    """The default for strips. One stage: pipelined gathers of pixels would not fit any GPU's shared memory."""
    return Tile(min(padded(out_channels), 16), 32 if dtype.itemsize == 4 else 64, padded(taps), 8, 1)


def conv_pool_mlp_candidates(out_channels: int, taps: int, dtype: torch.dtype, target: Target) -> Iterator[Tile]:
    """The default and what else might be faster."""
    default = conv_pool_mlp(out_channels, taps, dtype, target)
    yield default
    for m in sorted({min(padded(out_channels), limit) for limit in (16, 32)}):
        for n in (32, 64, 128):
            for warps in (4, 8):
                tile = Tile(m, n, padded(taps), warps, 1)
                if tile != default:
                    yield tile
