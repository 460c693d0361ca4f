"""conv_pool on a GPU: for every tap of the pool a matrix product over (channel, kernel row, kernel column)."""

import triton
import triton.language as tl

from fastgraph.kernels.cuda.functions import add_bias, maximum_or_nan, multiply_add, rounded_to, weight_columns


@triton.jit
def tap_places(
    k,
    stride_xc,
    stride_xh,
    stride_xw,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
):
    """(rows down, columns right, offset in the image) of an output channel's weights `k`, one or many of them."""
    down = k // KERNEL_W % KERNEL_H * DILATION_H
    right = k % KERNEL_W * DILATION_W
    offset = tl.cast(k // (KERNEL_H * KERNEL_W), tl.int64) * stride_xc
    return down, right, offset + tl.cast(down, tl.int64) * stride_xh + tl.cast(right, tl.int64) * stride_xw


@triton.jit
def not_padding(inside, row, column, H, W, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr):
    """Where `inside` holds and a pixel's row and column are the image's own. Shapes broadcast."""
    if PADDING_H > 0:
        inside &= (row >= 0) & (row < H)
    if PADDING_W > 0:
        inside &= (column >= 0) & (column < W)
    return inside


@triton.jit
def conv_pool_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    BATCH,
    H,
    W,
    CONV_H,
    CONV_W,
    POOLED_H,
    POOLED_W,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    POOL_H: tl.constexpr,
    POOL_W: tl.constexpr,
    POOL_STRIDE_H: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr,
    POOL_PADDING_H: tl.constexpr,
    POOL_PADDING_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y [BATCH, O, POOLED_H, POOLED_W] = relu(max over the window's taps of conv(x)): BLOCK_P results of BLOCK_O
    channels a program. x [BATCH, C, H, W] has any strides, w [O, C, KERNEL_H, KERNEL_W] and y are contiguous.

    Bias and ReLU come after the maximum, with which both commute.
    """
    TAPS: tl.constexpr = IN_CHANNELS * KERNEL_H * KERNEL_W
    tiles_o = tl.cdiv(OUT_CHANNELS, BLOCK_O)
    program = tl.program_id(0)
    channels = program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    # Results are numbered through images, rows and columns; 64 bits for the program's first one only.
    area = POOLED_H * POOLED_W
    first = (program // tiles_o).to(tl.int64) * BLOCK_P
    first_image = first // area
    place = (first - first_image * area).to(tl.int32) + tl.arange(0, BLOCK_P)
    image = first_image + place // area
    place = place % area
    valid = image < BATCH
    x_image = x_ptr + image * stride_xn
    best = tl.full((BLOCK_P, BLOCK_O), float("-inf"), dtype=tl.float32)
    for tap in range(POOL_H * POOL_W):
        conv_row = place // POOLED_W * POOL_STRIDE_H + tap // POOL_W - POOL_PADDING_H
        conv_column = place % POOLED_W * POOL_STRIDE_W + tap % POOL_W - POOL_PADDING_W
        exists = valid & (conv_row >= 0) & (conv_row < CONV_H) & (conv_column >= 0) & (conv_column < CONV_W)
        row = conv_row * STRIDE_H - PADDING_H
        column = conv_column * STRIDE_W - PADDING_W
        x_window = x_image + row.to(tl.int64) * stride_xh + column.to(tl.int64) * stride_xw
        conv = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
        for start in range(0, TAPS, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            down, right, offset = tap_places(
                k, stride_xc, stride_xh, stride_xw, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W
            )
            inside = not_padding(
                exists[:, None] & (k < TAPS)[None, :], row[:, None] + down[None, :], column[:, None] + right[None, :],
                H, W, PADDING_H, PADDING_W,
            )  # fmt: skip
            lhs = tl.load(x_window[:, None] + offset[None, :], mask=inside, other=0.0)
            rhs = weight_columns(w_ptr, OUT_CHANNELS, TAPS, k, channels)
            conv = multiply_add(lhs, rhs, conv, PRECISION)
        best = maximum_or_nan(best, tl.where(exists[:, None], conv, float("-inf")))
    best = add_bias(best, b_ptr, channels, OUT_CHANNELS, HAS_BIAS, 1)
    y = maximum_or_nan(best, 0.0)
    target = y_ptr + (image[:, None] * OUT_CHANNELS + channels[None, :]) * area + place[:, None]
    tl.store(target, rounded_to(y, y_ptr.dtype.element_ty), mask=valid[:, None] & (channels[None, :] < OUT_CHANNELS))
