"""conv_pool_mlp on a GPU, in one launch: strips of pooled rows, each convolution row computed once a strip."""

import triton
import triton.language as tl

from kernels.cuda.functions import activate, maximum_or_nan, multiply_add, rounded_to


@triton.jit
def conv_row_in_fp32(
    x_columns,
    w_ptr,
    exists,
    row,
    column,
    H,
    W,
    stride_xc,
    stride_xh,
    stride_xw,
    TAPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    channels,
    OUT_CHANNELS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """One row's products [BLOCK_W, BLOCK_O] tap by tap: without matrix instructions a product of whole tiles would hold
    both operands in registers, and spill."""
    conv = tl.zeros((BLOCK_W, BLOCK_O), dtype=tl.float32)
    for tap in range(TAPS):
        down = tap // KERNEL_W % KERNEL_H * DILATION_H
        right = tap % KERNEL_W * DILATION_W
        inside = exists
        if PADDING_H > 0:
            inside = inside & (row + down >= 0) & (row + down < H)
        if PADDING_W > 0:
            inside = inside & (column + right >= 0) & (column + right < W)
        offset = tl.cast(tap // (KERNEL_H * KERNEL_W), tl.int64) * stride_xc
        offset += tl.cast(down, tl.int64) * stride_xh + tl.cast(right, tl.int64) * stride_xw
        pixels = tl.load(x_columns + offset, mask=inside, other=0.0)
        weights = tl.load(w_ptr + channels * TAPS + tap, mask=channels < OUT_CHANNELS, other=0.0)
        conv = tl.fma(tl.broadcast_to(pixels[:, None], (BLOCK_W, BLOCK_O)), weights[None, :], conv)
    return conv


@triton.jit
def pooled_conv_row(
    x_image,
    conv_row,
    w,
    H,
    W,
    CONV_H,
    CONV_W,
    stride_xc,
    stride_xh,
    stride_xw,
    channels,
    OUT_CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    POOL_W: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr,
    POOL_PADDING_W: tl.constexpr,
    IN_FP32: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Maxima [BLOCK_W, BLOCK_O] of one convolution row over the pool's windows; -inf where no such row exists.

    Window i begins at convolution column i * POOL_STRIDE_W: the columns of one remainder are one matrix product, and a
    window's later taps are the products of windows further right. `w` are the weights [BLOCK_K, BLOCK_O], or the
    pointer to them where IN_FP32.
    """
    windows = tl.arange(0, BLOCK_W)
    k = tl.arange(0, BLOCK_K)
    down = k // KERNEL_W % KERNEL_H * DILATION_H
    right = k % KERNEL_W * DILATION_W
    row = conv_row * STRIDE_H - PADDING_H
    offset = (
        (k // (KERNEL_H * KERNEL_W)).to(tl.int64) * stride_xc
        + down.to(tl.int64) * stride_xh
        + right.to(tl.int64) * stride_xw
    )
    x_row = x_image + row.to(tl.int64) * stride_xh
    best = tl.full((BLOCK_W, BLOCK_O), float("-inf"), dtype=tl.float32)
    for phase in tl.static_range(POOL_STRIDE_W if POOL_STRIDE_W < POOL_W else POOL_W):
        conv_column = windows * POOL_STRIDE_W + phase - POOL_PADDING_W
        exists = (conv_row >= 0) & (conv_row < CONV_H) & (conv_column >= 0) & (conv_column < CONV_W)
        column = conv_column * STRIDE_W - PADDING_W
        if IN_FP32:
            conv = conv_row_in_fp32(
                x_row + column.to(tl.int64) * stride_xw,
                w,
                exists,
                row,
                column,
                H,
                W,
                stride_xc,
                stride_xh,
                stride_xw,
                TAPS,
                KERNEL_H,
                KERNEL_W,
                PADDING_H,
                PADDING_W,
                DILATION_H,
                DILATION_W,
                channels,
                OUT_CHANNELS,
                BLOCK_W,
                BLOCK_O,
            )
        else:
            # [BLOCK_K, BLOCK_W], so that the lanes of a warp run along the image's row.
            inside = exists[None, :] & (k < TAPS)[:, None]
            if PADDING_H > 0:
                inside &= ((row + down >= 0) & (row + down < H))[:, None]
            if PADDING_W > 0:
                inside &= (column[None, :] + right[:, None] >= 0) & (column[None, :] + right[:, None] < W)
            pixels = tl.load(
                x_row + (column.to(tl.int64) * stride_xw)[None, :] + offset[:, None],
                mask=inside,
                other=0.0,
            )
            conv = multiply_add(tl.trans(pixels), w, tl.zeros((BLOCK_W, BLOCK_O), dtype=tl.float32), PRECISION)
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
    k = tl.arange(0, IN_PADDED)
    valid = features < OUT
    w = tl.load(w_ptr + features[:, None] * IN + k[None, :], mask=valid[:, None] & (k < IN)[None, :], other=0.0)
    y = multiply_add(w, x, tl.zeros((BLOCK_F, x.shape[1]), dtype=tl.float32), PRECISION)
    if HAS_BIAS:
        y += tl.load(b_ptr + features, mask=valid, other=0.0).to(tl.float32)[:, None]
    return tl.where(valid[:, None], activate(y, valid[:, None], ACTIVATION, 0), 0.0)


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
    k = tl.arange(0, BLOCK_K)
    channel_valid = channels < OUT_CHANNELS
    IN_FP32: tl.constexpr = dtype == tl.float32 and PRECISION == "ieee"
    if IN_FP32:
        w = w_ptr  # read tap by tap
    else:
        w = tl.load(
            w_ptr + channels[None, :] * TAPS + k[:, None], mask=channel_valid[None, :] & (k < TAPS)[:, None], other=0.0
        )
    columns = tl.arange(0, BLOCK_W)
    none = tl.full((BLOCK_W, BLOCK_O), float("-inf"), dtype=tl.float32)
    shared = none
    for i in tl.static_range(SHARED):
        row = pooled_conv_row(
            x_image,
            first * POOL_STRIDE_H + i - POOL_PADDING_H,
            w,
            H,
            W,
            CONV_H,
            CONV_W,
            stride_xc,
            stride_xh,
            stride_xw,
            channels,
            OUT_CHANNELS,
            TAPS,
            KERNEL_H,
            KERNEL_W,
            STRIDE_H,
            STRIDE_W,
            PADDING_H,
            PADDING_W,
            DILATION_H,
            DILATION_W,
            POOL_W,
            POOL_STRIDE_W,
            POOL_PADDING_W,
            IN_FP32,
            PRECISION,
            BLOCK_W,
            BLOCK_O,
            BLOCK_K,
        )
        shared = maximum_or_nan(shared, row)
    for pooled_row in range(first, min(first + STRIP, POOLED_H)):
        window = shared
        shared = none
        for i in tl.static_range(SHARED, POOL_H):
            row = pooled_conv_row(
                x_image,
                pooled_row * POOL_STRIDE_H + i - POOL_PADDING_H,
                w,
                H,
                W,
                CONV_H,
                CONV_W,
                stride_xc,
                stride_xh,
                stride_xw,
                channels,
                OUT_CHANNELS,
                TAPS,
                KERNEL_H,
                KERNEL_W,
                STRIDE_H,
                STRIDE_W,
                PADDING_H,
                PADDING_W,
                DILATION_H,
                DILATION_W,
                POOL_W,
                POOL_STRIDE_W,
                POOL_PADDING_W,
                IN_FP32,
                PRECISION,
                BLOCK_W,
                BLOCK_O,
                BLOCK_K,
            )
            window = maximum_or_nan(window, row)
            if i >= POOL_STRIDE_H:
                shared = maximum_or_nan(shared, row)
        if HAS_BIAS:
            window += tl.load(b_ptr + channels, mask=channel_valid, other=0.0).to(tl.float32)[None, :]
        pooled = tl.where((columns < IN)[:, None], maximum_or_nan(window, 0.0), 0.0)
        pooled = rounded_to(pooled, dtype)
        if LAYERS == 1:
            y = layer_of_columns(
                pooled,
                w1_ptr,
                b1_ptr,
                tl.arange(0, BLOCK_F),
                IN,
                BLOCK_W,
                OUT1,
                BLOCK_F,
                ACTIVATION1,
                HAS_BIAS1,
                PRECISION,
            )
        else:
            features2 = tl.arange(0, PADDED2)
            valid2 = features2 < OUT2
            y = tl.zeros((PADDED2, BLOCK_O), dtype=tl.float32)
            for start in range(0, OUT1, BLOCK_F):
                features1 = start + tl.arange(0, BLOCK_F)
                hidden = layer_of_columns(
                    pooled, w1_ptr, b1_ptr, features1, IN, BLOCK_W, OUT1, BLOCK_F, ACTIVATION1, HAS_BIAS1, PRECISION
                )
                w2 = tl.load(
                    w2_ptr + features2[:, None] * OUT1 + features1[None, :],
                    mask=valid2[:, None] & (features1 < OUT1)[None, :],
                    other=0.0,
                )
                y = multiply_add(w2, rounded_to(hidden, dtype), y, PRECISION)
            if HAS_BIAS2:
                y += tl.load(b2_ptr + features2, mask=valid2, other=0.0).to(tl.float32)[:, None]
            y = tl.where(valid2[:, None], activate(y, valid2[:, None], ACTIVATION2, 0), 0.0)
        if LAYERS == 3:
            y = layer_of_columns(
                rounded_to(y, dtype),
                w3_ptr,
                b3_ptr,
                tl.arange(0, PADDED3),
                OUT2,
                PADDED2,
                OUT3,
                PADDED3,
                ACTIVATION3,
                HAS_BIAS3,
                PRECISION,
            )
        out: tl.constexpr = OUT1 if LAYERS == 1 else OUT2 if LAYERS == 2 else OUT3
        padded: tl.constexpr = BLOCK_F if LAYERS == 1 else PADDED2 if LAYERS == 2 else PADDED3
        features = tl.arange(0, padded)
        target = y_ptr + ((image * OUT_CHANNELS + channels[None, :]) * POOLED_H + pooled_row) * out + features[:, None]
        tl.store(target, rounded_to(y, dtype), mask=(features < out)[:, None] & channel_valid[None, :])
