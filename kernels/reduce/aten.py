"""ATen's reductions over the last axes, and softmax."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels.lowering import Lowering, Operand, as_channels_last, axis_of, lowers, require, size_of
from fastgraph.kernels.pool.aten import mean_of_pixels

aten = torch.ops.aten

SUM, MEAN, AMAX, AMIN = range(4)  # enum class Reduction in cpu.h


def _reduce(low: Lowering, x: Operand, kind: int, dim: Any, keepdim: bool) -> torch.Tensor:
    rank = len(size_of(x))
    given = [dim] if isinstance(dim, int) else list(dim or range(rank))
    axes = sorted(axis_of(d, rank) for d in given)
    require(axes == list(range(rank - len(axes), rank)), "a reduction over other axes than the last ones")
    x = low.ready(x)
    if kind == MEAN and rank in (3, 4) and len(axes) == rank - 2 and as_channels_last(x) is not None:
        pooled = mean_of_pixels(low, x)
        return pooled if keepdim else pooled.flatten(1)
    x = low.contiguous(x)
    result = low.new((*x.shape[: rank - len(axes)], *([1] * len(axes) if keepdim else [])))
    return low.step(low.kernels.Reduce(kind, len(axes)), [x], result)


@lowers(aten.mean.dim)
def mean(
    low: Lowering, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> torch.Tensor:
    """Over the last axes."""
    return _reduce(low, x, MEAN, dim, keepdim)


@lowers(aten.sum.dim_IntList)
def sum(
    low: Lowering, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> torch.Tensor:
    """Over the last axes."""
    return _reduce(low, x, SUM, dim, keepdim)


@lowers(aten.amax.default)
def amax(low: Lowering, x: Operand, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    """Over the last axes."""
    return _reduce(low, x, AMAX, dim, keepdim)


@lowers(aten.amin.default)
def amin(low: Lowering, x: Operand, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    """Over the last axes."""
    return _reduce(low, x, AMIN, dim, keepdim)


def _softmax(low: Lowering, x: Operand, dim: int, is_log: bool) -> torch.Tensor:
    rank = len(size_of(x))
    require(axis_of(dim, rank) == rank - 1, "a softmax over another axis than the last one")
    x = low.contiguous(x)
    return low.step(low.kernels.Softmax(is_log), [x], low.new(x.shape))


@lowers(aten.softmax.int)
def softmax(low: Lowering, x: Operand, dim: int, dtype: Any = None) -> torch.Tensor:
    """Over the last axis."""
    return _softmax(low, x, dim, False)


@lowers(aten.log_softmax.int)
def log_softmax(low: Lowering, x: Operand, dim: int, dtype: Any = None) -> torch.Tensor:
    """Over the last axis."""
    return _softmax(low, x, dim, True)
