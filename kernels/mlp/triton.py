"""mlp on a GPU: a Linear layer with its activations, by pointers or by tensor descriptors (TMA), and a whole chain.

All of them take fp32, fp16 or bf16, accumulate in fp32, and round a layer's output to the tensors' dtype before the
next layer, as eager does. Weights are in nn.Linear's layout [out_features, in_features].
"""

import triton
import triton.language as tl

from fastgraph.kernels.cuda.functions import finish_layer, multiply_add, rounded_to, weight_columns


@triton.jit
def tile_of_program(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of a program's tile, in groups of GROUP_M tile rows, so that neighbours find weights in L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first_m = program // (GROUP_M * tiles_n) * GROUP_M
    rows = min(tiles_m - first_m, GROUP_M)
    inside = program % (GROUP_M * tiles_n)
    return first_m + inside % rows, inside // rows


@triton.jit
def product_by_pointers(
    x_ptr,
    w_ptr,
    rows,
    columns,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[rows, columns] of x w^T, any strides."""
    k = tl.arange(0, BLOCK_K)
    x = x_ptr + rows.to(tl.int64)[:, None] * stride_xm + k.to(tl.int64)[None, :] * stride_xk
    w = w_ptr + columns.to(tl.int64)[None, :] * stride_wn + k.to(tl.int64)[:, None] * stride_wk  # [BLOCK_K, BLOCK_N]
    step_x = tl.cast(stride_xk, tl.int64) * BLOCK_K
    step_w = tl.cast(stride_wk, tl.int64) * BLOCK_K
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        lhs = tl.load(x, mask=(rows[:, None] < M) & inside[None, :], other=0.0)
        rhs = tl.load(w, mask=(columns[None, :] < N) & inside[:, None], other=0.0)
        accumulator = multiply_add(lhs, rhs, accumulator, PRECISION)
        x += step_x
        w += step_w
    return accumulator


@triton.jit
def product_by_descriptors(
    x_ptr,
    w_ptr,
    first_row,
    first_column,
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of x w^T with operands fetched by tensor descriptors: the TMA unit computes addresses and bounds."""
    x = tl.make_tensor_descriptor(x_ptr, shape=[M, K], strides=[stride_xm, 1], block_shape=[BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, shape=[N, K], strides=[stride_wn, 1], block_shape=[BLOCK_N, BLOCK_K])
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        lhs = x.load([first_row, start])
        rhs = w.load([first_column, start])
        accumulator = multiply_add(lhs, tl.trans(rhs), accumulator, PRECISION)
    return accumulator


@triton.jit
def linear_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_ym,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """y [M, N] = activation(x [M, K] w [N, K]^T + b [N]), any strides of x and w. One tile of y a program.

    softmax needs BLOCK_N >= N. With DESCRIPTORS x and w start at multiples of 16 bytes; their rows are contiguous, and
    multiples of 16 bytes apart.
    """
    tile_m, tile_n = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if DESCRIPTORS:
        y = product_by_descriptors(
            x_ptr, w_ptr, tile_m * BLOCK_M, tile_n * BLOCK_N, M, N, K, stride_xm, stride_wn,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        y = product_by_pointers(
            x_ptr, w_ptr, rows, columns, M, N, K, stride_xm, stride_xk, stride_wn, stride_wk,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    y = rounded_to(finish_layer(y, b_ptr, columns, N, ACTIVATION, HAS_BIAS, 1), y_ptr.dtype.element_ty)
    target = y_ptr + rows.to(tl.int64)[:, None] * stride_ym + columns[None, :]
    tl.store(target, y, mask=(rows[:, None] < M) & (columns[None, :] < N))


@triton.jit
def resident_layer(
    x,
    w_ptr,
    b_ptr,
    IN: tl.constexpr,
    IN_PADDED: tl.constexpr,
    OUT: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One layer on rows that are in registers already: x [rows, IN_PADDED], zero beyond IN; returns fp32."""
    columns = tl.arange(0, OUT_PADDED)
    w = weight_columns(w_ptr, OUT, IN, tl.arange(0, IN_PADDED), columns)
    y = multiply_add(x, w, tl.zeros((x.shape[0], OUT_PADDED), dtype=tl.float32), PRECISION)
    return finish_layer(y, b_ptr, columns, OUT, ACTIVATION, HAS_BIAS, 1)


@triton.jit
def mlp_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    w3_ptr,
    b3_ptr,
    w4_ptr,
    b4_ptr,
    y_ptr,
    M,
    stride_xm,
    stride_xk,
    LAYERS: tl.constexpr,
    IN: tl.constexpr,
    OUT1: tl.constexpr,
    OUT2: tl.constexpr,
    OUT3: tl.constexpr,
    OUT4: tl.constexpr,
    PADDED2: tl.constexpr,
    PADDED3: tl.constexpr,
    PADDED4: tl.constexpr,
    ACTIVATION1: tl.constexpr,
    ACTIVATION2: tl.constexpr,
    ACTIVATION3: tl.constexpr,
    ACTIVATION4: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    HAS_BIAS3: tl.constexpr,
    HAS_BIAS4: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A chain of two to four layers in one launch; BLOCK_M rows a program. Weights contiguous, y [M, OUT of the last].

    Layer 1 is computed in slices of BLOCK_N features, each of which goes into layer 2's accumulator at once; from there
    on a row's features are all in registers. PADDED: features rounded up to a power of two, at least 16.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < M
    columns2 = tl.arange(0, PADDED2)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * stride_xm
    y = tl.zeros((BLOCK_M, PADDED2), dtype=tl.float32)
    for first in range(0, OUT1, BLOCK_N):
        columns1 = first + tl.arange(0, BLOCK_N)
        hidden = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, IN, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            lhs = tl.load(
                x_rows + k.to(tl.int64)[None, :] * stride_xk, mask=row_valid[:, None] & (k < IN)[None, :], other=0.0
            )
            hidden = multiply_add(lhs, weight_columns(w1_ptr, OUT1, IN, k, columns1), hidden, PRECISION)
        hidden = finish_layer(hidden, b1_ptr, columns1, OUT1, ACTIVATION1, HAS_BIAS1, 1)
        w2 = weight_columns(w2_ptr, OUT2, OUT1, columns1, columns2)
        y = multiply_add(rounded_to(hidden, dtype), w2, y, PRECISION)
    y = finish_layer(y, b2_ptr, columns2, OUT2, ACTIVATION2, HAS_BIAS2, 1)
    out: tl.constexpr = OUT2 if LAYERS == 2 else OUT3 if LAYERS == 3 else OUT4
    padded: tl.constexpr = PADDED2 if LAYERS == 2 else PADDED3 if LAYERS == 3 else PADDED4
    if LAYERS > 2:
        y = resident_layer(
            rounded_to(y, dtype), w3_ptr, b3_ptr, OUT2, PADDED2, OUT3, PADDED3, ACTIVATION3, HAS_BIAS3, PRECISION
        )
    if LAYERS > 3:
        y = resident_layer(
            rounded_to(y, dtype), w4_ptr, b4_ptr, OUT3, PADDED3, OUT4, PADDED4, ACTIVATION4, HAS_BIAS4, PRECISION
        )
    columns = tl.arange(0, padded)
    target = y_ptr + rows.to(tl.int64)[:, None] * out + columns[None, :]
    tl.store(target, rounded_to(y, dtype), mask=row_valid[:, None] & (columns[None, :] < out))
