// Elementwise functions beside those of ../cpu/activation.h, fitted and described as there.
#pragma once

#include "../cpu/activation.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {

// NaN where either is NaN, as torch has it.
FASTGRAPH_INLINE F16 maximum(F16 a, F16 b) { return select(is_nan(a), a, max(a, b)); }
FASTGRAPH_INLINE F16 minimum(F16 a, F16 b) { return select(is_nan(a), a, min(a, b)); }

// Comparisons give 1 or 0; with a NaN only not_equal() is true.
FASTGRAPH_INLINE F16 one_where(Mask m) { return select(m, broadcast(1.0f), broadcast(0.0f)); }
FASTGRAPH_INLINE F16 zero_where_nan(F16 a, F16 b, F16 otherwise) {
  return select(is_nan(a), broadcast(0.0f), select(is_nan(b), broadcast(0.0f), otherwise));
}
FASTGRAPH_INLINE F16 greater(F16 a, F16 b) { return one_where(less(b, a)); }
FASTGRAPH_INLINE F16 greater_equal(F16 a, F16 b) { return zero_where_nan(a, b, sub(broadcast(1.0f), one_where(less(a, b)))); }
FASTGRAPH_INLINE F16 equal(F16 a, F16 b) { return mul(greater_equal(a, b), greater_equal(b, a)); }
FASTGRAPH_INLINE F16 not_equal(F16 a, F16 b) { return sub(broadcast(1.0f), equal(a, b)); }
FASTGRAPH_INLINE F16 choose(F16 condition, F16 yes, F16 no) {  // a NaN is not zero
  return select(is_nan(condition), yes, select(less(broadcast(0.0f), absolute(condition)), yes, no));
}

FASTGRAPH_INLINE F16 floor(F16 x) {
  const F16 n = round(x);
  return select(less(x, n), sub(n, broadcast(1.0f)), n);
}
FASTGRAPH_INLINE F16 ceil(F16 x) {
  const F16 n = round(x);
  return with_sign_of(absolute(select(less(n, x), add(n, broadcast(1.0f)), n)), x);  // -0 for what is between -1 and 0
}

FASTGRAPH_INLINE F16 prelu(F16 x, F16 slope) { return select(less(broadcast(0.0f), x), x, mul(slope, x)); }

// e^x - 1 beyond where expm1() ends, too; -0 and denormals stay.
FASTGRAPH_INLINE F16 expm1_everywhere(F16 x) {
  const F16 inside = select(less(absolute(x), broadcast(5.96e-8f)), x, expm1(x));
  return select(less(broadcast(88.0f), x), exp(x), inside);
}

// The logarithm of finite x > 0, with `rest` added before the last rounding.
FASTGRAPH_INLINE F16 log_of_positive(F16 x, F16 rest) {
  // 2 artanh(s) = 2 s + s^3 q(s^2) for x = 2^n (1 + f), s = f / (2 + f), with 1 + f from sqrt(1/2) to sqrt(2): 3.3e-10
  constexpr float q[] = {6.666666865e-01f, 4.000012279e-01f, 2.855077982e-01f, 2.333161384e-01f};
  const Mask tiny = less(x, broadcast(1.17549435e-38f));
  const F16 normal = select(tiny, mul(x, broadcast(8388608.0f)), x);
  F16 n = exponent(normal);
  F16 m = bits_or(bits_and(normal, 0x007FFFFFu), broadcast(1.0f));
  const Mask high = less(broadcast(1.41421356f), m);
  m = select(high, mul(m, broadcast(0.5f)), m);
  n = select(high, add(n, broadcast(1.0f)), n);
  n = select(tiny, sub(n, broadcast(23.0f)), n);
  const F16 f = sub(m, broadcast(1.0f)), s = div(f, add(broadcast(2.0f), f)), z = mul(s, s);
  // 2 s = f - s f, and s f = f^2/2 - s f^2/2: what is rounded is small beside f
  const F16 half = mul(mul(broadcast(0.5f), f), f);
  const F16 small = fma(s, fma(z, polynomial(z, q), half), fma(n, broadcast(9.05800061e-06f), rest));  // log(2) in two parts, the
  return fma(n, broadcast(6.93138123e-01f), sub(f, sub(half, small)));                                  // first exact in 16 bits
}

// NaN below zero, -infinity at zero; NaN and infinity stay.
FASTGRAPH_INLINE F16 with_ends_of_log(F16 x, F16 inside) {
  const F16 below = select(less(x, broadcast(0.0f)), broadcast(__builtin_nanf("")), broadcast(-__builtin_inff()));
  const F16 finite = select(less(broadcast(0.0f), x), inside, below);
  return select(less(broadcast(3.40282347e+38f), x), x, select(is_nan(x), x, finite));
}

FASTGRAPH_INLINE F16 log(F16 x) { return with_ends_of_log(x, log_of_positive(x, broadcast(0.0f))); }

FASTGRAPH_INLINE F16 log1p(F16 x) {
  const F16 y = add(broadcast(1.0f), x);
  // what 1 + x lost in rounding, as a part of it
  const F16 lost = select(less(x, broadcast(1.0f)), sub(x, sub(y, broadcast(1.0f))), sub(broadcast(1.0f), sub(y, x)));
  const F16 result = with_ends_of_log(y, log_of_positive(y, div(lost, y)));
  return select(less(absolute(x), broadcast(5.96e-8f)), x, result);  // -0 and denormals stay
}

// The sine, or the cosine, for |x| up to kLargestAngle.
constexpr float kLargestAngle = 65536;

FASTGRAPH_INLINE F16 sine(F16 x, bool is_cosine) {
  // (sin(r)/r - 1)/r^2 on |r| <= 0.8: 3e-9; (cos(r) - 1 + r^2/2)/r^4 on |r| <= 0.8: 7e-10; both as parts of the result
  constexpr float s[] = {-1.666666716e-01f, 8.333331905e-03f, -1.983999682e-04f, 2.723845455e-06f};
  constexpr float c[] = {4.166666791e-02f, -1.388888806e-03f, 2.480052535e-05f, -2.729138373e-07f};
  const F16 n = round(mul(x, broadcast(0.636619772f)));
  F16 r = fma(n, broadcast(-1.570796371e+00f), x);  // pi/2 in three parts; exact, since both are multiples of 2^-24
  r = fma(n, broadcast(4.371138829e-08f), r);
  r = fma(n, broadcast(1.715124510e-15f), r);
  const F16 quarter = is_cosine ? add(n, broadcast(1.0f)) : n;
  const F16 half = round(fma(quarter, broadcast(0.5f), broadcast(-0.25f))), whole = round(fma(half, broadcast(0.5f), broadcast(-0.25f)));
  const Mask is_odd = less(add(half, half), quarter), is_negative = less(add(whole, whole), half);
  const F16 z = mul(r, r);
  const F16 sine_of_r = fma(mul(r, z), polynomial(z, s), r);
  const F16 cosine_of_r = fma(mul(z, z), polynomial(z, c), fma(z, broadcast(-0.5f), broadcast(1.0f)));
  F16 y = select(is_odd, cosine_of_r, sine_of_r);
  y = select(is_negative, negate(y), y);
  return is_cosine ? y : select(less(absolute(x), broadcast(2.4e-4f)), x, y);  // -0 stays
}

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
