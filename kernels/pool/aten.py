"""ATen's pools over one and two axes."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels.conv.aten import numbers
from fastgraph.kernels.conv_pool.op import pool_size
from fastgraph.kernels.lowering import Lowering, NotLowered, Operand, lowers, require, size_of

aten = torch.ops.aten

MAX, AVERAGE = 0, 1  # enum class PoolKind in kernels/pool/cpu.h

Numbers = Sequence[int] | int


def _map(low: Lowering, x: Operand, axes: int) -> torch.Tensor:
    x = low.channels_last(x)
    if x.dim() != axes + 2:
        raise NotLowered("a map without a batch axis")
    return x


def _two(value: Numbers, axes: int, beside: int) -> list[int]:
    """A number for each of two axes; `beside` for the first where there is one axis only."""
    given = numbers(value, axes)
    return given if axes == 2 else [beside, *given]


def _size(x: torch.Tensor, sizes: Sequence[list[int]], ceil_mode: bool) -> tuple[int, ...]:
    """Of the result; `sizes`: kernel, stride, padding and dilation, two each."""
    windows = list(zip((1, *x.shape[2:])[-2:], *sizes, strict=True))
    result = [pool_size(n, d * (k - 1) + 1, s, p, ceil_mode) for n, k, s, p, d in windows]
    fits = all(2 * p <= k for _, k, _, p, _ in windows)
    require(min(result) > 0 and fits, "a map smaller than the pool, or more padding than half of it")
    return (*x.shape[:2], *result[4 - x.dim() :])


def _pool(
    low: Lowering, x: Operand, kind: int, window: Sequence[Any], *, counts: tuple[bool, int] = (True, 0)
) -> torch.Tensor:
    """`window`: kernel size, stride, padding, dilation, ceil_mode."""
    kernel, stride, padding, dilation, ceil_mode = window
    axes = len(size_of(x)) - 2
    require(axes in (1, 2), "no map")
    x_map = _map(low, x, axes)
    steps = stride if not isinstance(stride, list | tuple) or len(stride) else kernel
    sizes = [_two(kernel, axes, 1), _two(steps, axes, 1), _two(padding, axes, 0), _two(dilation, axes, 1)]
    step = low.kernels.Pool(kind, *sizes, bool(ceil_mode), *counts)
    return low.step(step, [x_map], low.result(_size(x_map, sizes, bool(ceil_mode)), channels_last=True))


@lowers(aten.max_pool2d.default)
def max_pool2d(
    low: Lowering,
    x: Operand,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """The largest of each window."""
    return _pool(low, x, MAX, (kernel_size, stride, padding, dilation, ceil_mode))


@lowers(aten.max_pool1d.default)
def max_pool1d(
    low: Lowering,
    x: Operand,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """The largest of each window."""
    return _pool(low, x, MAX, (kernel_size, stride, padding, dilation, ceil_mode))


@lowers(aten.avg_pool2d.default)
def avg_pool2d(
    low: Lowering,
    x: Operand,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """The mean of each window."""
    window, counts = (kernel_size, stride, padding, 1, ceil_mode), (bool(count_include_pad), divisor_override or 0)
    return _pool(low, x, AVERAGE, window, counts=counts)


@lowers(aten.avg_pool1d.default)
def avg_pool1d(
    low: Lowering,
    x: Operand,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> torch.Tensor:
    """The mean of each window."""
    window = (kernel_size, stride, padding, 1, ceil_mode)
    return _pool(low, x, AVERAGE, window, counts=(bool(count_include_pad), 0))


def _adaptive(low: Lowering, x: Operand, kind: int, size: Sequence[int], axes: int) -> torch.Tensor:
    x = _map(low, x, axes)
    result = low.result((*x.shape[:2], *size), channels_last=True)
    return low.step(low.kernels.AdaptivePool(kind, [1, *size][-2:]), [x], result)


@lowers(aten.adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(low: Lowering, x: Operand, output_size: Sequence[int]) -> torch.Tensor:
    """Means of as many even parts."""
    return _adaptive(low, x, AVERAGE, output_size, 2)


@lowers(aten.adaptive_avg_pool1d.default)
def adaptive_avg_pool1d(low: Lowering, x: Operand, output_size: Sequence[int]) -> torch.Tensor:
    """Means of as many even parts."""
    return _adaptive(low, x, AVERAGE, output_size, 1)


def mean_of_pixels(low: Lowering, x: torch.Tensor) -> torch.Tensor:
    """Of each channel of a map, whose other axes keep a size of one."""
    return _adaptive(low, x, AVERAGE, [1] * (x.dim() - 2), x.dim() - 2)
