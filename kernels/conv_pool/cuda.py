"""conv_pool on CUDA tensors: its tile and its launch. The kernel is in kernels/conv_pool/triton.py."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from fastgraph.kernels.conv_pool.op import Geometry, conv_size, output_shape
from fastgraph.kernels.cuda import choices, tiles
from fastgraph.kernels.cuda.measure import Trial, Trials
from fastgraph.kernels.cuda.target import Target, cdiv
from fastgraph.kernels.cuda.tiles import Tile

LARGEST = 2**31 - 1  # pooled pixels of one image: places in it are 32-bit numbers


def refusal(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any) -> str | None:
    """Why the kernel does not take these tensors, or None if it does."""
    if 0 in weight.shape:
        return "a convolution without weights"
    if weight.numel() > LARGEST:
        return f"more than {LARGEST} weights"
    _, _, height, width = output_shape(input, weight, Geometry(*geometry))
    return f"more than {LARGEST} pooled pixels an image" if height * width > LARGEST else None


def geometry_arguments(input: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> dict[str, Any]:
    """Arguments that conv_pool's and conv_pool_mlp's kernels have in common."""
    stride, padding, dilation, pool, pool_stride, pool_padding, _ = geometry
    arguments: dict[str, Any] = dict(
        x_ptr=input,
        w_ptr=weight.contiguous(),
        BATCH=input.shape[0],
        H=input.shape[2],
        W=input.shape[3],
        IN_CHANNELS=weight.shape[1],
        OUT_CHANNELS=weight.shape[0],
    )
    for axis, letter in enumerate("nchw"):
        arguments[f"stride_x{letter}"] = input.stride(axis)
    for axis, letter in enumerate("HW"):
        kernel = weight.shape[2 + axis]
        arguments |= {
            f"CONV_{letter}": conv_size(input.shape[2 + axis], kernel, stride[axis], padding[axis], dilation[axis]),
            f"KERNEL_{letter}": kernel,
            f"STRIDE_{letter}": stride[axis],
            f"PADDING_{letter}": padding[axis],
            f"DILATION_{letter}": dilation[axis],
            f"POOL_{letter}": pool[axis],
            f"POOL_STRIDE_{letter}": pool_stride[axis],
            f"POOL_PADDING_{letter}": pool_padding[axis],
        }
    return arguments


def key(weight: torch.Tensor, geometry: Geometry, dtype: torch.dtype, target: Target) -> str:
    """What a measured choice holds for: the convolution, the pool, dtype or precision, architecture."""
    numbers = [list(weight.shape), *(list(v) for v in geometry[:-1])]
    sizes = " ".join("x".join(str(n) for n in pair) for pair in numbers)
    return f"conv_pool {sizes} {target.kind(dtype)} {target.architecture.name}"


def run(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *geometry: Any,
    target: Target,
    tile: Tile | None = None,
) -> torch.Tensor:
    """The op by its Triton kernel; `tile` None: the one measured as fastest, or the default."""
    from fastgraph.kernels.conv_pool import triton as kernels

    sizes = Geometry(*geometry)
    y = input.new_empty(output_shape(input, weight, sizes))
    batch, channels, height, width = y.shape
    pixels = batch * height * width
    if tile is None:
        choice = choices.chosen(key(weight, sizes, input.dtype, target), pixels)
        taps = weight[0].numel()
        tile = choice.tile if choice else None
        tile = tile or tiles.conv_pool(channels, taps, input.dtype, target)
    grid = (cdiv(pixels, tile.m) * cdiv(channels, tile.n),)
    target.launch(kernels.conv_pool_kernel)[grid](
        **geometry_arguments(input, weight, sizes),
        b_ptr=weight if bias is None else bias.contiguous(),
        y_ptr=y,
        POOLED_H=height,
        POOLED_W=width,
        HAS_BIAS=bias is not None,
        PRECISION=target.precision,
        BLOCK_P=tile.m,
        BLOCK_O=tile.n,
        BLOCK_K=tile.k,
        **tile.options,
    )
    return y


def describe(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any, target: Target
) -> tuple[str, str | None]:
    """(which kernel runs, None)."""
    measured = choices.describe(key(weight, Geometry(*geometry), input.dtype, target))
    return measured or "one launch (default tile, not measured)", None


def trials(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any, target: Target
) -> Iterator[Trials]:
    """Tiles."""
    sizes = Geometry(*geometry)
    batch, channels, height, width = output_shape(input, weight, sizes)
    found = tiles.conv_pool_candidates(channels, weight[0].numel(), input.dtype, target)
    call = partial(run, input, weight, bias, *geometry, target=target)
    ways = (Trial("whole", t, partial(call, tile=t)) for t in found)
    yield Trials(key(weight, sizes, input.dtype, target), batch * height * width, ways)
