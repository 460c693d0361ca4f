"""ATen's resizing of maps over two axes."""

from collections.abc import Sequence

import torch

from fastgraph.kernels.lowering import Lowering, Operand, lowers, require, size_of

aten = torch.ops.aten

NEAREST, LINEAR = 0, 1  # enum class UpsampleMode in cpu.h


def _scale(before: int, after: int, factor: float | None, align_corners: bool, mode: int) -> float:
    """Input pixels a pixel of the result, as ATen's area_pixel_compute_scale; its nearest pixels take no notice of a
    factor where there are as many pixels, or twice as many."""
    if mode == NEAREST and after in (before, 2 * before):
        return before / after
    if align_corners:
        return (before - 1) / (after - 1) if after > 1 else 0.0
    return 1 / factor if factor is not None and factor > 0 else before / after


def _upsample(
    low: Lowering,
    x: Operand,
    mode: int,
    output_size: Sequence[int] | None,
    factors: Sequence[float] | None,
    align_corners: bool = False,
) -> torch.Tensor:
    fits = len(size_of(x)) == 4 and (output_size is None) != (factors is None)
    require(fits, "resizing of other than two axes")
    x = low.channels_last(x)
    before = x.shape[2:]
    if output_size is None:
        assert factors is not None
        after = [int(n * f) for n, f in zip(before, factors, strict=True)]
    else:
        after = list(output_size)
    given = factors or (None, None)
    scales = [_scale(b, a, f, align_corners, mode) for b, a, f in zip(before, after, given, strict=True)]
    result = low.result((*x.shape[:2], *after), channels_last=True)
    return low.step(low.kernels.Upsample(mode, align_corners, *scales), [x], result)


@lowers(aten.upsample_nearest2d.vec)
def upsample_nearest2d(
    low: Lowering, x: Operand, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> torch.Tensor:
    """By the nearest pixel."""
    return _upsample(low, x, NEAREST, output_size, scale_factors)


@lowers(aten.upsample_bilinear2d.vec)
def upsample_bilinear2d(
    low: Lowering,
    x: Operand,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> torch.Tensor:
    """Linear between four pixels."""
    return _upsample(low, x, LINEAR, output_size, scale_factors, align_corners)
