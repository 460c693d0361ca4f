"""Device functions that the Triton kernels share: weights, products, rounding, bias and activations.

Names are unique among all files of kernels: Inductor copies what a kernel calls into one file.

Triton's interpreter keeps bfloat16 as raw bits, which its arithmetic takes for integers, and it ignores a product's
precision. Under it (`TRITON_INTERPRET=1`) the functions here do both with bit operations instead, so that the kernels
around them are tested as they are.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tf32_of(x):
    """fp32 rounded to the 10 mantissa bits of tf32, halves away from zero. Interpreter only."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), rounded, x)


@triton.jit
def interpreted_dot(lhs, rhs, accumulator, PRECISION: tl.constexpr):
    """multiply_add in fp32, with tf32's roundings where PRECISION asks for them."""
    lhs = lhs.to(tl.float32)
    rhs = rhs.to(tl.float32)
    if PRECISION == "ieee":
        return tl.dot(lhs, rhs, accumulator, input_precision="ieee")
    lhs_high = tf32_of(lhs)
    rhs_high = tf32_of(rhs)
    if PRECISION == "tf32x3":
        lhs_low = tf32_of(lhs - lhs_high)
        rhs_low = tf32_of(rhs - rhs_high)
        small = tl.dot(lhs_low, rhs_high, tl.zeros_like(accumulator), input_precision="ieee")
        small = tl.dot(lhs_high, rhs_low, small, input_precision="ieee")
        accumulator += tl.where(small == small, small, 0.0)  # infinity - infinity in the low halves
    return tl.dot(lhs_high, rhs_high, accumulator, input_precision="ieee")


@triton.jit
def multiply_add(lhs, rhs, accumulator, PRECISION: tl.constexpr):
    """accumulator [M, N] fp32 + lhs [M, K] @ rhs [K, N]. PRECISION of fp32 operands: "ieee", "tf32x3" or "tf32"."""
    if INTERPRETED:
        accumulator = interpreted_dot(lhs, rhs, accumulator, PRECISION)
    else:
        accumulator = tl.dot(lhs, rhs, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def rounded_to(x, dtype: tl.constexpr):
    """fp32 in another dtype, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nearest = tl.where(x == x, nearest, 0x7FC0)  # a NaN's low bits would carry into its exponent
        y = nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def weight_columns(w_ptr, N, K, k, columns):
    """[k, columns] of the transpose of contiguous weights [N, K]; zero outside of them."""
    inside = (columns[None, :] < N) & (k < K)[:, None]
    return tl.load(w_ptr + columns[None, :] * K + k[:, None], mask=inside, other=0.0)


@triton.jit
def weight_rows(w_ptr, N, K, rows, k):
    """[rows, k] of contiguous weights [N, K]; zero outside of them."""
    inside = (rows < N)[:, None] & (k < K)[None, :]
    return tl.load(w_ptr + rows[:, None] * K + k[None, :], mask=inside, other=0.0)


@triton.jit
def maximum_or_nan(a, b):
    """Elementwise maximum; NaN where either is NaN, as in torch."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tanh_of(x):
    """tanh. Near zero its series, where the formula with exponentials would lose digits."""
    s = x * x
    series = x * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * (1382 / 155925))))))
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -large, large))


@triton.jit
def elementwise(x, NUMBER: tl.constexpr):
    """One activation of fp32 values, by its place in kernels.mlp.op.ACTIVATIONS; others leave x as it is."""
    if NUMBER == 1:
        x = maximum_or_nan(x, 0.0)
    elif NUMBER == 2:
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NUMBER == 3:
        x = 0.5 * x * (1 + tanh_of(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NUMBER == 4:
        x = x / (1 + tl.exp(-x))
    elif NUMBER == 5:
        x = tanh_of(x)
    elif NUMBER == 6:
        x = 1 / (1 + tl.exp(-x))
    return x


@triton.jit
def activate(x, valid, CODE: tl.constexpr, AXIS: tl.constexpr):
    """A layer's activations (`kernels.cuda.launch.activation_code`) of fp32 values; features run along AXIS.

    softmax and log_softmax, always the last, are over the features that are `valid`.
    """
    for i in tl.static_range(4):
        x = elementwise(x, (CODE // 10**i) % 10)
    if CODE >= 10000:
        x = tl.where(valid, x, float("-inf"))
        x -= tl.expand_dims(tl.max(x, axis=AXIS), AXIS)
        e = tl.exp(x)
        total = tl.expand_dims(tl.sum(e, axis=AXIS), AXIS)
        if CODE // 10000 == 7:
            x = e / total
        else:
            x -= tl.log(total)
    return x


@triton.jit
def add_bias(x, b_ptr, features, N, HAS_BIAS: tl.constexpr, AXIS: tl.constexpr):
    """fp32 values plus the bias [N] of their `features`, which run along AXIS."""
    if HAS_BIAS:
        b = tl.load(b_ptr + features, mask=features < N, other=0.0).to(tl.float32)
        x += tl.expand_dims(b, 1 - AXIS)
    return x


@triton.jit
def finish_layer(x, b_ptr, features, N, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, AXIS: tl.constexpr):
    """Bias and activations of a layer's products, whose `features` run along AXIS.

    Zero beyond N: times the next layer's zeros an infinity there would become NaN.
    """
    valid = tl.expand_dims(features < N, 1 - AXIS)
    x = add_bias(x, b_ptr, features, N, HAS_BIAS, AXIS)
    return tl.where(valid, activate(x, valid, ACTIVATION, AXIS), 0.0)
