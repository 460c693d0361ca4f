"""conv_pool_mlp on a GPU, in one launch: strips of pooled rows, each convolution row computed once a strip."""

import triton
import triton.language as tl

from fastgraph.kernels.conv_pool.triton import not_padding, tap_places
from fastgraph.kernels.cuda.functions import (
    add_bias,
    finish_layer,
    maximum_or_nan,
    multiply_add,
    rounded_to,
    weight_columns,
    weight_rows,
)


@triton.jit
def conv_row_in_fp32(
    x_row, w_ptr, exists, row, column, image, strides, channels, OUT_CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One row's products [BLOCK_W, BLOCK_O] tap by tap: without matrix instructions a product of whole tiles would hold
    both operands in registers, and spill."""
    x_columns = x_row + column.to(tl.int64) * strides[2]
    conv = tl.zeros((BLOCK_W, BLOCK_O), dtype=tl.float32)
    for tap in range(TAPS):
        down, right, offset = tap_places(tap, *strides, *KERNEL, *DILATION)
        inside = not_padding(exists, row + down, column + right, *image, *PADDING)
        pixels = tl.load(x_columns + offset, mask=inside, other=0.0)
        weights = tl.load(w_ptr + channels * TAPS + tap, mask=channels < OUT_CHANNELS, other=0.0)
        conv = tl.fma(tl.broadcast_to(pixels[:, None], (BLOCK_W, BLOCK_O)), weights[None, :], conv)
    return conv


@triton.jit
def conv_row_of_tiles(
    x_row, w, exists, row, column, image, strides, TAPS: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One row's products [BLOCK_W, BLOCK_O] in one product of whole tiles; w [BLOCK_K, BLOCK_O]."""
    k = tl.arange(0, BLOCK_K)
    down, right, offset = tap_places(k, *strides, *KERNEL, *DILATION)
    # [BLOCK_K, BLOCK_W], so that the lanes of a warp run along the image's row.
    inside = exists[None, :] & (k < TAPS)[:, None]
    inside = not_padding(inside, (row + down)[:, None], column[None, :] + right[:, None], *image, *PADDING)
    # The row's address first: the sum of the other two would be kept in registers from strip to strip.
    x_columns = x_row + (column.to(tl.int64) * strides[2])[None, :]
    pixels = tl.load(x_columns + offset[:, None], mask=inside, other=0.0)
    return multiply_add(tl.trans(pixels), w, tl.zeros((BLOCK_W, BLOCK_O), dtype=tl.float32), PRECISION)


@triton.jit
def pooled_conv_row(
    x_image, conv_row, w, image, strides, conv_size, channels, OUT_CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, POOL_W: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr, POOL_PADDING_W: tl.constexpr, IN_FP32: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Maxima [BLOCK_W, BLOCK_O] of one convolution row over the pool's windows; -inf where no such row exists.

    Window i begins at convolution column i * POOL_STRIDE_W: the columns of one remainder are one matrix product, and a
    window's later taps are the products of windows further right. `w` are the weights [BLOCK_K, BLOCK_O], or the
    pointer to them where IN_FP32. Pairs are (rows, columns), `strides` those of channels, rows and columns.
    """
    windows = tl.arange(0, BLOCK_W)
    row = conv_row * STRIDE[0] - PADDING[0]
    x_row = x_image + row.to(tl.int64) * strides[1]
    best = tl.full((BLOCK_W, BLOCK_O), float("-inf"), dtype=tl.float32)
    for phase in tl.static_range(POOL_STRIDE_W if POOL_STRIDE_W < POOL_W else POOL_W):
        conv_column = windows * POOL_STRIDE_W + phase - POOL_PADDING_W
        exists = (conv_row >= 0) & (conv_row < conv_size[0]) & (conv_column >= 0) & (conv_column < conv_size[1])
        column = conv_column * STRIDE[1] - PADDING[1]
        if IN_FP32:
            conv = conv_row_in_fp32(
                x_row, w, exists, row, column, image, strides, channels, OUT_CHANNELS, TAPS, KERNEL, PADDING, DILATION,
                BLOCK_W, BLOCK_O,
            )  # fmt: skip
        else:
            conv = conv_row_of_tiles(
                x_row, w, exists, row, column, image, strides, TAPS, KERNEL, PADDING, DILATION, PRECISION, BLOCK_W,
                BLOCK_O, BLOCK_K,
            )  # fmt: skip
        conv = tl.where(exists[:, None], conv, float("-inf"))
        for tap in tl.static_range(phase, POOL_W, POOL_STRIDE_W):
            if tap < POOL_STRIDE_W:
                best = maximum_or_nan(best, conv)
            else:
                source = tl.minimum(windows + tap // POOL_STRIDE_W, BLOCK_W - 1)
                source = tl.broadcast_to(source[:, None], (BLOCK_W, BLOCK_O))
                best = maximum_or_nan(best, tl.gather(conv, source, axis=0))
    return best


@triton.jit
def layer_of_columns(
    x,
    w_ptr,
    b_ptr,
    features,
    IN: tl.constexpr,
    IN_PADDED: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some `features` of a layer whose rows are the columns of x [IN_PADDED, BLOCK_O]; w [OUT, IN] contiguous.

    x is zero beyond IN, and so is the result [BLOCK_F, BLOCK_O], in fp32, beyond OUT.
    """
    w = weight_rows(w_ptr, OUT, IN, features, tl.arange(0, IN_PADDED))
    y = multiply_add(w, x, tl.zeros((BLOCK_F, x.shape[1]), dtype=tl.float32), PRECISION)
    return finish_layer(y, b_ptr, features, OUT, ACTIVATION, HAS_BIAS, 0)


@triton.jit
def conv_pool_mlp_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    w3_ptr,
    b3_ptr,
    y_ptr,
    BATCH,
    H,
    W,
    CONV_H,
    CONV_W,
    POOLED_H,
    STRIP,
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
    LAYERS: tl.constexpr,
    IN: tl.constexpr,
    OUT1: tl.constexpr,
    OUT2: tl.constexpr,
    OUT3: tl.constexpr,
    PADDED2: tl.constexpr,
    PADDED3: tl.constexpr,
    ACTIVATION1: tl.constexpr,
    ACTIVATION2: tl.constexpr,
    ACTIVATION3: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    HAS_BIAS3: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """STRIP pooled rows of BLOCK_O channels of one image a program; y [BATCH * O * POOLED_H, OUT of the last layer].

    x [BATCH, C, H, W] has any strides, all else is contiguous. A pooled row, IN wide, is one row of the mlp of one to
    three layers. A window of the pool spans at most two steps of POOL_STRIDE_H rows: the rows that it shares with the
    next window are kept. BLOCK_W covers IN and the windows that the last one's taps reach; BLOCK_K all taps of the
    convolution; BLOCK_F is a slice of layer 1's features, all of them where there is one layer only.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    TAPS: tl.constexpr = IN_CHANNELS * KERNEL_H * KERNEL_W
    SHARED: tl.constexpr = POOL_H - POOL_STRIDE_H if POOL_H > POOL_STRIDE_H else 0
    tiles_o = tl.cdiv(OUT_CHANNELS, BLOCK_O)
    strips = tl.cdiv(POOLED_H, STRIP)
    program = tl.program_id(0)
    channels = program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    first = program // tiles_o % strips * STRIP
    image = (program // tiles_o // strips).to(tl.int64)
    x_image = x_ptr + image * stride_xn
    IN_FP32: tl.constexpr = dtype == tl.float32 and PRECISION == "ieee"
    # In fp32 they are read tap by tap.
    w = w_ptr if IN_FP32 else weight_columns(w_ptr, OUT_CHANNELS, TAPS, tl.arange(0, BLOCK_K), channels)
    columns = tl.arange(0, BLOCK_W)
    none = tl.full((BLOCK_W, BLOCK_O), float("-inf"), dtype=tl.float32)
    shared = none
    for i in tl.static_range(SHARED):
        row = pooled_conv_row(
            x_image, first * POOL_STRIDE_H + i - POOL_PADDING_H, w, (H, W), (stride_xc, stride_xh, stride_xw),
            (CONV_H, CONV_W), channels, OUT_CHANNELS, TAPS, (KERNEL_H, KERNEL_W), (STRIDE_H, STRIDE_W),
            (PADDING_H, PADDING_W), (DILATION_H, DILATION_W), POOL_W, POOL_STRIDE_W, POOL_PADDING_W, IN_FP32,
            PRECISION, BLOCK_W, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        shared = maximum_or_nan(shared, row)
    for pooled_row in range(first, min(first + STRIP, POOLED_H)):
        window = shared
        shared = none
        for i in tl.static_range(SHARED, POOL_H):
            row = pooled_conv_row(
                x_image, pooled_row * POOL_STRIDE_H + i - POOL_PADDING_H, w, (H, W), (stride_xc, stride_xh, stride_xw),
                (CONV_H, CONV_W), channels, OUT_CHANNELS, TAPS, (KERNEL_H, KERNEL_W), (STRIDE_H, STRIDE_W),
                (PADDING_H, PADDING_W), (DILATION_H, DILATION_W), POOL_W, POOL_STRIDE_W, POOL_PADDING_W, IN_FP32,
                PRECISION, BLOCK_W, BLOCK_O, BLOCK_K,
            )  # fmt: skip
            window = maximum_or_nan(window, row)
            if i >= POOL_STRIDE_H:
                shared = maximum_or_nan(shared, row)
        window = add_bias(window, b_ptr, channels, OUT_CHANNELS, HAS_BIAS, 1)
        pooled = tl.where((columns < IN)[:, None], maximum_or_nan(window, 0.0), 0.0)
        pooled = rounded_to(pooled, dtype)
        if LAYERS == 1:
            features1 = tl.arange(0, BLOCK_F)
            y = layer_of_columns(
                pooled, w1_ptr, b1_ptr, features1, IN, BLOCK_W, OUT1, BLOCK_F, ACTIVATION1, HAS_BIAS1, PRECISION
            )
        else:
            features2 = tl.arange(0, PADDED2)
            y = tl.zeros((PADDED2, BLOCK_O), dtype=tl.float32)
            for start in range(0, OUT1, BLOCK_F):
                features1 = start + tl.arange(0, BLOCK_F)
                hidden = layer_of_columns(
                    pooled, w1_ptr, b1_ptr, features1, IN, BLOCK_W, OUT1, BLOCK_F, ACTIVATION1, HAS_BIAS1, PRECISION
                )
                w2 = weight_rows(w2_ptr, OUT2, OUT1, features2, features1)
                y = multiply_add(w2, rounded_to(hidden, dtype), y, PRECISION)
            y = finish_layer(y, b2_ptr, features2, OUT2, ACTIVATION2, HAS_BIAS2, 0)
        if LAYERS == 3:
            y, features3 = rounded_to(y, dtype), tl.arange(0, PADDED3)
            y = layer_of_columns(
                y, w3_ptr, b3_ptr, features3, OUT2, PADDED2, OUT3, PADDED3, ACTIVATION3, HAS_BIAS3, PRECISION
            )
        out: tl.constexpr = OUT1 if LAYERS == 1 else OUT2 if LAYERS == 2 else OUT3
        padded: tl.constexpr = BLOCK_F if LAYERS == 1 else PADDED2 if LAYERS == 2 else PADDED3
        features = tl.arange(0, padded)
        target = y_ptr + ((image * OUT_CHANNELS + channels[None, :]) * POOLED_H + pooled_row) * out + features[:, None]
        tl.store(target, rounded_to(y, dtype), mask=(features < out)[:, None] & (channels < OUT_CHANNELS)[None, :])
