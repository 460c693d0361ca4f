// Activations on sixteen floats. Polynomials: Chebyshev interpolants of the function named,
// fitted in 40-digit arithmetic on the interval given; the figure is the largest relative
// error of the polynomial with its coefficients rounded to single precision.
// Reduction and scaling of exp as in Cody and Waite, "Software Manual for the Elementary
// Functions" (1980), chapter 6. NaN goes through every one of them.
#pragma once

#include "simd/simd.h"

namespace fastgraph {

// Values are part of the binding: kernels/mlp/op.py names the first of them in this order.
enum class Activation : int {
  none, relu, gelu, gelu_tanh, silu, tanh, sigmoid, softmax, log_softmax,
  clamp,        // to [a, b]
  leaky_relu,   // a x where x is below zero
  elu,          // a (e^x - 1) there
  hardswish, hardsigmoid, mish,
  softplus,     // log(1 + e^(a x)) / a, but x where a x is above b
};

// An elementwise activation with its parameters.
struct ActivationCall {
  Activation kind;
  float a = 0, b = 0;
};

namespace FASTGRAPH_ISA {

template <int N>
FASTGRAPH_INLINE F16 polynomial(F16 x, const float (&c)[N]) {
  F16 r = broadcast(c[N - 1]);
#pragma GCC unroll 12
  for (int i = N - 2; i >= 0; i--) r = fma(r, x, broadcast(c[i]));
  return r;
}

FASTGRAPH_INLINE F16 negate(F16 x) { return sub(broadcast(-0.0f), x); }
FASTGRAPH_INLINE F16 absolute(F16 x) { return bits_and(x, 0x7FFFFFFFu); }
FASTGRAPH_INLINE F16 with_sign_of(F16 magnitude, F16 x) { return bits_or(magnitude, bits_and(x, 0x80000000u)); }

// max(0, x); the second operand wins where x is NaN.
FASTGRAPH_INLINE F16 relu(F16 x) { return max(broadcast(0.0f), x); }

// e^x = power * 2^n.
struct Exponential { F16 power, n; };

FASTGRAPH_INLINE Exponential reduced_exp(F16 x) {
  // e^r on |r| <= log(2)/2: 2.1e-8
  constexpr float c[] = {1.0f, 1.000000038e+00f, 5.000000047e-01f, 1.666641451e-01f, 4.166635164e-02f, 8.375210201e-03f, 1.394121310e-03f};
  const F16 n = round(mul(x, broadcast(1.44269504f)));
  F16 r = fma(n, broadcast(-0.693359375f), x);           // log(2) in two parts, the first exact in nine bits
  r = fma(n, broadcast(2.12194440e-4f), r);
  return {polynomial(r, c), n};
}

FASTGRAPH_INLINE F16 exp(F16 x) {
  const Exponential e = reduced_exp(min(broadcast(89.0f), max(broadcast(-104.0f), x)));  // beyond: infinity and zero
  const F16 half = round(mul(e.n, broadcast(0.5f)));     // 2^n in two factors, so that denormals come out right
  return mul(mul(e.power, exp2_whole(half)), exp2_whole(sub(e.n, half)));
}

// The same for |x| <= 87, where 2^n needs no care.
FASTGRAPH_INLINE F16 exp_in_range(F16 x) {
  const Exponential e = reduced_exp(x);
  return mul(e.power, exp2_whole(e.n));
}

FASTGRAPH_INLINE F16 sigmoid(F16 x) { return div(broadcast(1.0f), add(broadcast(1.0f), exp(negate(x)))); }
FASTGRAPH_INLINE F16 silu(F16 x) { return div(x, add(broadcast(1.0f), exp(negate(x)))); }

FASTGRAPH_INLINE F16 tanh(F16 x) {
  // tanh(x)/x in x^2 on [0, 0.4]: 1.2e-8; beyond, 1 - 2 / (e^2|x| + 1)
  constexpr float c[] = {1.0f, -3.333325145e-01f, 1.333091717e-01f, -5.370427744e-02f, 2.053697200e-02f, -5.599785037e-03f};
  const F16 a = absolute(x), square = mul(x, x);
  const F16 near = mul(x, polynomial(square, c));
  const F16 twice = min(broadcast(20.0f), add(a, a));  // beyond: 1
  const F16 far = sub(broadcast(1.0f), div(broadcast(2.0f), add(exp_in_range(twice), broadcast(1.0f))));
  return select(less(a, broadcast(0.625f)), near, with_sign_of(far, x));
}

FASTGRAPH_INLINE F16 erf(F16 x) {
  // erf(x)/x in x^2 on [0, 1]: 6.6e-8; -log(1 - erf(x)) on [0.98, 4]: 1.8e-8; 1 beyond
  constexpr float inner[] = {1.128379166e+00f, -3.761262667e-01f, 1.128359472e-01f, -2.685421201e-02f, 5.189087423e-03f, -8.016864287e-04f, 7.875875063e-05f};
  constexpr float outer[] = {-3.214710264e-04f, 1.130239201e+00f, 6.318156996e-01f, 1.100901975e-01f, -2.642704377e-02f, 4.761717236e-03f, -5.972644331e-04f, 4.611291391e-05f, -1.639938016e-06f};
  const F16 a = absolute(x), square = mul(x, x);
  const F16 near = mul(x, polynomial(square, inner));
  const F16 far = sub(broadcast(1.0f), exp_in_range(negate(polynomial(min(broadcast(4.0f), a), outer))));
  return select(less(a, broadcast(1.0f)), near, with_sign_of(far, x));
}

FASTGRAPH_INLINE F16 gelu(F16 x) {
  return mul(mul(broadcast(0.5f), x), add(broadcast(1.0f), erf(mul(x, broadcast(0.707106781f)))));
}

FASTGRAPH_INLINE F16 gelu_tanh(F16 x) {
  const F16 cube = mul(mul(x, x), x);
  const F16 inner = mul(broadcast(0.797884561f), fma(broadcast(0.044715f), cube, x));
  return mul(mul(broadcast(0.5f), x), add(broadcast(1.0f), tanh(inner)));
}

// e^x - 1.
FASTGRAPH_INLINE F16 expm1(F16 x) {
  // (e^r - 1) / r on |r| <= log(2)/2: 4.1e-8
  constexpr float c[] = {1.0f, 5.000000047e-01f, 1.666641451e-01f, 4.166635164e-02f, 8.375210201e-03f, 1.394121310e-03f};
  const F16 inside = min(broadcast(88.0f), max(broadcast(-104.0f), x)), n = round(mul(inside, broadcast(1.44269504f)));
  F16 r = fma(n, broadcast(-0.693359375f), inside);
  r = fma(n, broadcast(2.12194440e-4f), r);
  const F16 half = round(mul(n, broadcast(0.5f))), power = mul(exp2_whole(half), exp2_whole(sub(n, half)));
  return fma(power, mul(r, polynomial(r, c)), sub(power, broadcast(1.0f)));
}

// log(1 + u) for u in [0, 1].
FASTGRAPH_INLINE F16 log1p_small(F16 u) {
  // 2 artanh(z), z = u / (2 + u): its power series up to z^17, 1.4e-9 beyond
  constexpr float c[] = {1.0f, 1 / 3.0f, 1 / 5.0f, 1 / 7.0f, 1 / 9.0f, 1 / 11.0f, 1 / 13.0f, 1 / 15.0f, 1 / 17.0f};
  const F16 z = div(u, add(broadcast(2.0f), u));
  return mul(add(z, z), polynomial(mul(z, z), c));
}

FASTGRAPH_INLINE F16 clamp(F16 x, F16 low, F16 high) { return min(high, max(low, x)); }  // a NaN stays one
FASTGRAPH_INLINE F16 leaky_relu(F16 x, float slope) { return select(less(x, broadcast(0.0f)), mul(broadcast(slope), x), x); }
FASTGRAPH_INLINE F16 elu(F16 x, float scale) { return select(less(x, broadcast(0.0f)), mul(broadcast(scale), expm1(x)), x); }
FASTGRAPH_INLINE F16 hardsigmoid(F16 x) {
  return div(clamp(add(x, broadcast(3.0f)), broadcast(0.0f), broadcast(6.0f)), broadcast(6.0f));
}
FASTGRAPH_INLINE F16 hardswish(F16 x) {
  return div(mul(x, clamp(add(x, broadcast(3.0f)), broadcast(0.0f), broadcast(6.0f))), broadcast(6.0f));
}
// x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2)
FASTGRAPH_INLINE F16 mish(F16 x) {
  const F16 power = exp(min(broadcast(20.0f), x)), n = mul(power, add(power, broadcast(2.0f)));
  return mul(x, div(n, add(n, broadcast(2.0f))));
}
FASTGRAPH_INLINE F16 softplus(F16 x, float beta, float threshold) {
  const F16 y = mul(x, broadcast(beta)), tail = log1p_small(exp(negate(absolute(y))));
  const F16 soft = div(add(max(broadcast(0.0f), y), tail), broadcast(beta));
  return select(less(broadcast(threshold), y), x, soft);
}

// Calls body(f), f(F16) being the elementwise function.
template <class Body>
FASTGRAPH_INLINE void with_function(const ActivationCall& call, const Body& body) {
#define FASTGRAPH_IS(kind, expression) \
  case Activation::kind: return body([&](F16 x) __attribute__((always_inline)) { return (expression); })
  switch (call.kind) {
    FASTGRAPH_IS(relu, relu(x));
    FASTGRAPH_IS(gelu, gelu(x));
    FASTGRAPH_IS(gelu_tanh, gelu_tanh(x));
    FASTGRAPH_IS(silu, silu(x));
    FASTGRAPH_IS(tanh, tanh(x));
    FASTGRAPH_IS(sigmoid, sigmoid(x));
    FASTGRAPH_IS(clamp, clamp(x, broadcast(call.a), broadcast(call.b)));
    FASTGRAPH_IS(leaky_relu, leaky_relu(x, call.a));
    FASTGRAPH_IS(elu, elu(x, call.a));
    FASTGRAPH_IS(hardswish, hardswish(x));
    FASTGRAPH_IS(hardsigmoid, hardsigmoid(x));
    FASTGRAPH_IS(mish, mish(x));
    FASTGRAPH_IS(softplus, softplus(x, call.a, call.b));
    default: return;
  }
#undef FASTGRAPH_IS
}

// Applies one elementwise activation to x[0 .. 16 * vectors).
FASTGRAPH_INLINE void activate(const ActivationCall& call, float* x, int64_t vectors) {
  with_function(call, [&](const auto& function) {
    for (int64_t v = 0; v < vectors; v++) store(x + v * kLanes, function(load(x + v * kLanes)));
  });
}

// Folds sixteen lanes pairwise in one fixed order: 8 apart, then 4, 2, 1.
FASTGRAPH_INLINE float fold_sum(F16 x) {
  float lane[kLanes];
  store(lane, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}

FASTGRAPH_INLINE float fold_max(F16 x) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 1; i < kLanes; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
  return lane[0];
}

// Largest bit pattern of the lanes, as signed integers: the largest of floats that are not negative, NaN above all.
FASTGRAPH_INLINE float fold_bits_max(F16 x) {
  int32_t lane[kLanes];
  float lanes[kLanes];
  store(lanes, x);
  memcpy(lane, lanes, sizeof lane);
  for (int i = 1; i < kLanes; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
  memcpy(lanes, lane, sizeof(float));
  return lanes[0];
}

// softmax or log_softmax over x[0 .. n), in place; x has room for n rounded up to 16.
FASTGRAPH_INLINE void softmax_row(float* x, int64_t n, bool logarithm) {
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = n; i < padded; i++) x[i] = -__builtin_inff();
  F16 largest = load(x);
  for (int64_t i = kLanes; i < padded; i += kLanes) largest = max(largest, load(x + i));
  const F16 shift = broadcast(fold_max(largest));
  F16 sum = broadcast(0.0f);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F16 shifted = sub(load(x + i), shift), e = exp(shifted);
    sum = add(sum, e);
    store(x + i, logarithm ? shifted : e);
  }
  const float total = fold_sum(sum);
  const F16 scale = broadcast(logarithm ? float(__builtin_log(double(total))) : total);
  for (int64_t i = 0; i < padded; i += kLanes)
    store(x + i, logarithm ? sub(load(x + i), scale) : div(load(x + i), scale));
}

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
