// Reductions and softmax of rows.
#pragma once

#include <math.h>

#include "../pointwise/functions.h"
#include "cpu.h"
#include "sums.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Lanes folded pairwise by fold(a, b).
template <class Fold>
FASTGRAPH_INLINE float fold_lanes(F16 x, const Fold& fold) {
  float lane[kLanes];
  store(lane, x);
#pragma GCC unroll 4
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] = fold(lane[i], lane[i + width]);
  return lane[0];
}

FASTGRAPH_INLINE float larger_of(float a, float b) { return a > b ? a : b; }

// Calls take(F16) for all values of a row, some of them twice, and `others` where it has fewer than sixteen.
template <class Take>
FASTGRAPH_INLINE void for_all_values(const float* x, int64_t n, F16 others, const Take& take) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) take(load(x + i));
  if (i == n) return;
  take(n < kLanes ? first_lanes(load_first(x, n), n, others) : load(x + n - kLanes));
}

// The largest value, or the smallest; a NaN wins.
template <bool kSmallest>
FASTGRAPH_INLINE float row_extreme(const float* x, int64_t n) {
  F16 largest = broadcast(-INFINITY), nan = broadcast(0.0f);
  for_all_values(x, n, broadcast(kSmallest ? INFINITY : -INFINITY), [&](F16 v) __attribute__((always_inline)) {
    nan = select(is_nan(v), v, nan);
    largest = max(kSmallest ? negate(v) : v, largest);
  });
  const float found = fold_lanes(largest, larger_of), missing = fold_sum(nan);
  return missing != missing ? missing : kSmallest ? -found : found;
}

void reduce_rows(Reduction kind, const float* x, int64_t rows, int64_t size, float* y) {
  for (int64_t row = 0; row < rows; row++, x += size) {
    switch (kind) {
      case Reduction::sum: y[row] = float(row_sum(x, size)); break;
      case Reduction::mean: y[row] = float(row_sum(x, size) / double(size)); break;
      case Reduction::amax: y[row] = row_extreme<false>(x, size); break;
      case Reduction::amin: y[row] = row_extreme<true>(x, size); break;
    }
  }
}

// The largest of a row's values; any where there is a NaN.
FASTGRAPH_INLINE F16 row_shift(const float* x, int64_t n) {
  F16 largest = broadcast(-INFINITY);
  for_all_values(x, n, largest, [&](F16 v) __attribute__((always_inline)) { largest = max(largest, v); });
  return broadcast(fold_lanes(largest, larger_of));
}

// e^x for x that is not above zero; zero in place of a denormal.
FASTGRAPH_INLINE F16 power_below_one(F16 x) {
  const F16 least = broadcast(-87.0f);
  return select(less(x, least), broadcast(0.0f), exp_in_range(max(least, x)));
}

// y = function(x), value by value.
template <class Function>
FASTGRAPH_INLINE void map_values(const float* x, int64_t n, float* y, const Function& function) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, function(load(x + i)));
  if (i < n) store_first(y + i, function(load_first(x + i, n - i)), n - i);
}

void softmax_rows(bool is_log, const float* x, int64_t rows, int64_t size, float* y) {
  for (int64_t row = 0; row < rows; row++, x += size, y += size) {
    const F16 shift = row_shift(x, size);
    const auto power = [&](F16 v) __attribute__((always_inline)) { return power_below_one(sub(v, shift)); };
    if (is_log) {
      const double sum = lanes_total(row_sums<1>(x, size, [&](F16 v) __attribute__((always_inline)) { return RowSums<1>{{power(v)}}; }).v[0]);
      const F16 scale = log(broadcast(float(sum)));
      map_values(x, size, y, [&](F16 v) __attribute__((always_inline)) { return sub(sub(v, shift), scale); });
    } else {
      map_values(x, size, y, power);
      const F16 scale = broadcast(float(1 / row_sum(y, size)));
      map_values(y, size, y, [&](F16 v) __attribute__((always_inline)) { return mul(v, scale); });
    }
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
