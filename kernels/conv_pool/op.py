"""`torch.ops.fastgraph.conv_pool`: convolution, bias, ReLU and max-pooling.

    conv_pool(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,
              int[2] pool_kernel_size, int[2] pool_stride, int[2] pool_padding, bool ceil_mode) -> Tensor

    output = max_pool2d(relu(conv2d(input, weight, bias)))

input [B, C, H, W], weight [O, C, kernel_h, kernel_w], bias [O] or None, output [B, O, H', W'] with the sizes of
torch.nn.Conv2d and torch.nn.MaxPool2d. All tensors have one device and one floating dtype, but for an fp32 input beside
bf16 weights on the CPU: then the result is fp32. fp32 and bf16 on the CPU run in compiled kernels (fp32 sums in a fixed
order, see kernels/cpu/gemm/tile.h; bf16 weights are widened, but where a convolution is three wide and the machine has
bf16 dot products, the transformed pixels and weights are rounded to bf16), fp32, fp16 and bf16 on CUDA in a Triton
kernel, all else in ATen. RuntimeError for tensors that do not fit together.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fastgraph.kernels import native
from fastgraph.kernels.checks import require, require_like
from fastgraph.kernels.conv_pool import reference
from fastgraph.kernels.library import Op, Size
from fastgraph.kernels.weights import address

MAX_OPEN_ROWS = 16  # pooling windows that one row can lie in; kMaxOpenRows in kernels/conv_pool/cpu.h
MAX_POOL_PADDING = 16  # kMaximaMargin there
WIDENED_FLOATS = 1 << 20  # of bf16 images that are widened at once

SLOWER = ((288, 16), (576, math.inf))  # from so many values a sum, for rows of at most so many pixels


class Geometry(NamedTuple):
    """What is behind weight and bias in the schema; with their sizes ConvPoolGeometry in kernels/conv_pool/cpu.h."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    pool_kernel_size: Sequence[int]
    pool_stride: Sequence[int]
    pool_padding: Sequence[int]
    ceil_mode: bool


GEOMETRY = ", ".join(f"int[2] {name}" for name in Geometry._fields[:-1]) + ", bool ceil_mode"  # in the ops' schemas


def refusal(geometry: Geometry) -> str | None:
    """Why the kernel does not take these sizes, or None if it does."""
    open_rows = -(-geometry.pool_kernel_size[0] // geometry.pool_stride[0])
    if open_rows > MAX_OPEN_ROWS:
        return f"{open_rows} windows of the pool lie on one row (the kernel takes {MAX_OPEN_ROWS})"
    if max(geometry.pool_padding) > MAX_POOL_PADDING:
        return f"pool_padding {list(geometry.pool_padding)} is above {MAX_POOL_PADDING}"
    return None


def is_slower(weight: Sequence[int], width: int) -> bool:
    """Whether convolution and pool by themselves are faster on the CPU, for a weight of this shape and this width.

    The kernel computes 16 pixels of a row at once, one input channel after the other: measured with AVX-512 it loses
    where most of these are beyond a narrow row, and where there are many channels.
    """
    values = math.prod(weight[1:])
    return any(values >= least and width <= widest for least, widest in SLOWER)


def conv_size(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """Size after a convolution along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pool_size(size: Any, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Any:
    """Size after a max-pool along one axis. With ceil_mode the last window begins inside the input or its padding."""
    out = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out = out - 1
    return out


def output_shape(input: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> tuple[Any, ...]:
    """Shape of the result, [B, O, H', W']."""
    stride, padding, dilation, pool_kernel_size, pool_stride, pool_padding, ceil_mode = geometry
    sizes = []
    for axis in (0, 1):
        conv = conv_size(input.shape[2 + axis], weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
        sizes.append(pool_size(conv, pool_kernel_size[axis], pool_stride[axis], pool_padding[axis], ceil_mode))
    return input.shape[0], weight.shape[0], *sizes


def check_geometry(op: str, geometry: Geometry) -> None:
    """Pairs where pairs are needed, in the ranges that torch allows and the kernel takes."""
    least = (1, 0, 1, 1, 1, 0)
    for name, smallest in zip(Geometry._fields[:-1], least, strict=True):
        value = getattr(geometry, name)
        fits = len(value) == 2 and min(value) >= smallest
        require(fits, "{}: {}: needs two numbers of at least {}, got {}", op, name, smallest, list(value))
    kernel, padding = geometry.pool_kernel_size, geometry.pool_padding
    fits = all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
    most = "needs at most half of pool_kernel_size"
    require(fits, "{}: pool_padding: {} {}, got {}", op, most, list(kernel), list(padding))
    reason = refusal(geometry)
    require(reason is None, "{}: {}", op, reason)


def check_constants(op: str, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> None:
    """The contract, as much of it as the input has no part in."""
    check_geometry(op, geometry)
    require(weight.dim() == 4, "{}: weight: needs shape [O, C, kernel_h, kernel_w], got {}", op, weight.shape)
    if bias is not None:
        fits = bias.dim() == 1 and bias.shape[0] == weight.shape[0]
        require(fits, "{}: bias: needs shape [{}], got {}", op, weight.shape[0], bias.shape)


def check(op: str, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> None:
    """The contract of the op, on real and on fake tensors."""
    check_constants(op, weight, bias, geometry)
    channels = weight.shape[1]
    fits = input.dim() == 4 and input.shape[1] == channels
    require(fits, "{}: input: needs shape [B, {}, H, W], got {}", op, channels, input.shape)
    require_like(op, input, weight=weight, bias=bias)
    stride, padding, dilation, *_ = geometry
    pooled = output_shape(input, weight, geometry)[2:]
    for axis, name in ((0, "H"), (1, "W")):
        conv = conv_size(input.shape[2 + axis], weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
        fits = conv >= 1 and pooled[axis] >= 1
        require(fits, "{}: input: needs a larger {} for kernel and pool to fit, got {}", op, name, input.shape)


def constants(
    weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any
) -> tuple[list[torch.Tensor | None], tuple[Any, ...]]:
    """Weight and bias; the geometry's numbers, unchangeable."""
    return [weight, bias], tuple(tuple(v) if isinstance(v, list) else v for v in geometry)


def pack(tensors: Sequence[torch.Tensor | None], *geometry: Any) -> Any:
    """Weight and bias in the kernel's own memory; `tensors` are both. fp32 or bf16, CPU. None without any weights."""
    module = native.kernels()
    assert module is not None
    weight, bias = (None if t is None else t.detach().float().contiguous() for t in tensors)
    assert weight is not None
    if weight.numel() == 0:
        return None
    bf16 = any(t is not None and t.dtype is torch.bfloat16 for t in tensors)
    out_channels, in_channels, *kernel = weight.shape
    *pairs, ceil_mode = geometry
    sizes = [in_channels, out_channels, *kernel, *(n for pair in pairs for n in pair)]
    return module.ConvPool(weight.data_ptr(), address(bias), sizes, ceil_mode, bf16)


def widened(image: torch.Tensor, output: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images as fp32, some at a time lest memory grow with the batch, each with its part of `output` [B, ..]."""
    count = max(1, WIDENED_FLOATS // image[0].numel())
    wide = torch.empty_like(image[:count], dtype=torch.float32)
    for part, to in zip(image.split(count), output.split(count), strict=True):
        yield wide[: len(part)].copy_(part), to


def run(kernel: Any, image: torch.Tensor, size: Size) -> torch.Tensor:
    """The kernel, this op's or conv_pool_mlp's, on images [B, C, H, W], fp32 or bf16; `size` is that of the result."""
    image = image.contiguous()
    output, batch = image.new_empty(size), image.shape[0]
    if batch and image.dtype is torch.float32:
        kernel.run([image], [output], torch.get_num_threads())
    elif batch:
        of_one = (size[0] // batch, *size[1:])
        for part, to in widened(image, output.view(batch, *of_one)):
            to.copy_(run(kernel, part, (len(part) * of_one[0], *size[1:])).view(to.shape))
    return output


def conv_pool_reference(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any
) -> torch.Tensor:
    """The definition, with a contiguous result as the kernel's."""
    return reference.conv_pool(input, weight, bias, *geometry).contiguous()


def conv_pool_backward(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of input, weight and bias. The convolution is computed again, in ATen, rather than kept."""
    aten = torch.ops.aten
    stride, padding, dilation, pool_kernel_size, pool_stride, pool_padding, ceil_mode = geometry
    dtype, input, grad = input.dtype, input.to(weight.dtype), grad.to(weight.dtype)
    conv = torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation))
    pool = (list(pool_kernel_size), list(pool_stride), list(pool_padding), [1, 1], ceil_mode)
    _, indices = aten.max_pool2d_with_indices(conv, *pool)
    grad = aten.max_pool2d_with_indices_backward(grad.contiguous(), conv, *pool, indices)
    grad = aten.threshold_backward(grad, conv, 0)
    conv_arguments = (list(stride), list(padding), list(dilation), False, [0, 0], 1)
    bias_size = None if bias is None else [bias.shape[0]]
    grads = aten.convolution_backward(grad, input, weight, bias_size, *conv_arguments, [True, True, bias is not None])
    return grads[0].to(dtype), grads[1], grads[2] if bias is not None else None


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor | None) -> None:
    """Keeps the op's own arguments, no intermediate result."""
    input, weight, bias, *geometry = inputs
    ctx.geometry = Geometry(*geometry)
    ctx.save_for_backward(input, weight, *([] if bias is None else [bias]))


def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Gradients for (input, weight, bias, the sizes)."""
    input, weight, *bias = ctx.saved_tensors
    grads = conv_pool_backward(grad, input, weight, bias[0] if bias else None, ctx.geometry)
    return (*grads, *(None for _ in ctx.geometry))


OP = Op(
    "conv_pool",
    f"(Tensor input, Tensor weight, Tensor? bias, {GEOMETRY}) -> Tensor",
    check=lambda input, weight, bias, *geometry: check("conv_pool", input, weight, bias, Geometry(*geometry)),
    check_constants=lambda weight, bias, *geometry: check_constants("conv_pool", weight, bias, Geometry(*geometry)),
    output_shape=lambda input, weight, bias, *geometry: output_shape(input, weight, Geometry(*geometry)),
    reference=conv_pool_reference,
    constants=constants,
    pack=pack,
    run=run,
    setup_context=setup_context,
    backward=backward,
)
