"""ATen's reductions, and softmax; other axes than the last ones are copied behind the others."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels.lowering import Lowering, Operand, as_channels_last, axis_of, lowers, size_of
from fastgraph.kernels.pool.aten import mean_of_pixels

aten = torch.ops.aten

SUM, MEAN, AMAX, AMIN = range(4)  # enum class Reduction in cpu.h


def _reduce(low: Lowering, x: Operand, kind: int, dim: Any, keepdim: bool) -> torch.Tensor:
    rank = len(size_of(x))
    given = [dim] if isinstance(dim, int) else list(dim or range(rank))
    axes = sorted(axis_of(d, rank) for d in given)
    kept = [axis for axis in range(rank) if axis not in axes]
    x = low.ready(x)
    if kind == MEAN and rank in (3, 4) and kept == [0, 1] and as_channels_last(x) is not None:
        result = mean_of_pixels(low, x)
        return result if keepdim else result.flatten(1)
    ordered = low.contiguous(x.permute(*kept, *axes))
    result = low.new([x.shape[axis] for axis in kept])
    low.step(low.kernels.Reduce(kind, len(axes)), [ordered], result)
    for axis in axes if keepdim else ():
        result = result.unsqueeze(axis)
    return result


def _keeps_dtype(*arguments: Any, dtype: Any = None) -> bool:
    return dtype is None


@lowers(aten.mean.dim, when=_keeps_dtype)
def mean(
    low: Lowering, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> torch.Tensor:
    """Over some axes."""
    return _reduce(low, x, MEAN, dim, keepdim)


@lowers(aten.sum.dim_IntList, when=_keeps_dtype)
def sum(
    low: Lowering, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> torch.Tensor:
    """Over some axes."""
    return _reduce(low, x, SUM, dim, keepdim)


@lowers(aten.amax.default)
def amax(low: Lowering, x: Operand, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    """Over some axes."""
    return _reduce(low, x, AMAX, dim, keepdim)


@lowers(aten.amin.default)
def amin(low: Lowering, x: Operand, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    """Over some axes."""
    return _reduce(low, x, AMIN, dim, keepdim)


def _softmax(low: Lowering, x: Operand, dim: int, is_log: bool) -> torch.Tensor:
    axis = axis_of(dim, len(size_of(x)))
    rows = low.contiguous(low.ready(x).transpose(axis, -1))
    return low.step(low.kernels.Softmax(is_log), [rows], low.new(rows.shape)).transpose(axis, -1)


@lowers(aten.softmax.int, when=lambda x, dim, dtype=None: dtype is None)
def softmax(low: Lowering, x: Operand, dim: int, dtype: Any = None) -> torch.Tensor:
    """Over one axis."""
    return _softmax(low, x, dim, False)


@lowers(aten.log_softmax.int, when=lambda x, dim, dtype=None: dtype is None)
def log_softmax(low: Lowering, x: Operand, dim: int, dtype: Any = None) -> torch.Tensor:
    """Over one axis."""
    return _softmax(low, x, dim, True)
