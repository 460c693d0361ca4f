"""ATen's pools over one and two axes."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels.conv.aten import numbers
from fastgraph.kernels.conv_pool.op import pool_size
from fastgraph.kernels.lowering import Lowering, Operand, lowers, require, size_of

aten = torch.ops.aten

MAX, AVERAGE = 0, 1  # enum class PoolKind in kernels/pool/cpu.h

Numbers = Sequence[int] | int


def _map(low: Lowering, x: Operand, axes: int) -> torch.Tensor:
    require(len(size_of(x)) == axes + 2, "a map without a batch axis")
    return low.channels_last(x)


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
    low: Lowering, x: Operand, kind: int, axes: int, window: Sequence[Any], counts: tuple[bool, int] = (True, 0)
) -> torch.Tensor:
    """`window`: kernel size, stride, padding, dilation, ceil_mode."""
    kernel, stride, padding, dilation, ceil_mode = window
    x = _map(low, x, axes)
    steps = stride if not isinstance(stride, list | tuple) or len(stride) else kernel
    sizes = [_two(kernel, axes, 1), _two(steps, axes, 1), _two(padding, axes, 0), _two(dilation, axes, 1)]
    step = low.kernels.Pool(kind, *sizes, bool(ceil_mode), *counts)
    return low.step(step, [x], low.result(_size(x, sizes, bool(ceil_mode)), channels_last=True))


def _adaptive(low: Lowering, x: Operand, kind: int, axes: int, size: Sequence[int]) -> torch.Tensor:
    x = _map(low, x, axes)
    result = low.result((*x.shape[:2], *size), channels_last=True)
    return low.step(low.kernels.AdaptivePool(kind, [1, *size][-2:]), [x], result)


def _over(axes: int, maximum: Any, average: Any, adaptive_average: Any) -> None:
    """Registers ATen's pools over so many axes: an operator takes maps of its own rank only."""

    @lowers(maximum)
    def max_pool(
        low: Lowering,
        x: Operand,
        kernel_size: Numbers,
        stride: Numbers = (),
        padding: Numbers = 0,
        dilation: Numbers = 1,
        ceil_mode: bool = False,
    ) -> torch.Tensor:
        return _pool(low, x, MAX, axes, (kernel_size, stride, padding, dilation, ceil_mode))

    @lowers(average)
    def avg_pool(
        low: Lowering,
        x: Operand,
        kernel_size: Numbers,
        stride: Numbers = (),
        padding: Numbers = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> torch.Tensor:
        counts = bool(count_include_pad), divisor_override or 0
        return _pool(low, x, AVERAGE, axes, (kernel_size, stride, padding, 1, ceil_mode), counts)

    @lowers(adaptive_average)
    def adaptive_avg_pool(low: Lowering, x: Operand, output_size: Sequence[int]) -> torch.Tensor:
        return _adaptive(low, x, AVERAGE, axes, output_size)


_over(1, aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)
_over(2, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)


def mean_of_pixels(low: Lowering, x: torch.Tensor) -> torch.Tensor:
    """Of each channel of a map, whose other axes keep a size of one."""
    axes = x.dim() - 2
    return _adaptive(low, x, AVERAGE, axes, [1] * axes)
