// Reductions and softmax of rows.
#pragma once

#include <math.h>
#include <string.h>

#include "cpu.h"
#include "sums.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// The largest value, or with `sign` -0 the smallest: of the values with their signs turned. A NaN wins.
FASTGRAPH_INLINE float row_extreme(const float* x, int64_t n, bool is_smallest) {
  const F16 none = broadcast(-INFINITY);
  F16 largest = none, nan = broadcast(0.0f);
  const auto take = [&](F16 v) __attribute__((always_inline)) {
    nan = select(is_nan(v), v, nan);
    largest = max(is_smallest ? negate(v) : v, largest);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) take(load(x + i));
  if (i < n) {
    float rest[kLanes];
    store(rest, broadcast(x[i]));
    memcpy(rest, x + i, size_t(n - i) * sizeof(float));
    take(load(rest));
  }
  const float found = fold_max(largest), missing = fold_sum(nan);
  return missing != missing ? missing : is_smallest ? -found : found;
}

void reduce_rows(Reduction kind, const float* x, int64_t rows, int64_t size, float* y) {
  for (int64_t row = 0; row < rows; row++, x += size) {
    switch (kind) {
      case Reduction::sum: y[row] = float(row_sum(x, size)); break;
      case Reduction::mean: y[row] = float(row_sum(x, size) / double(size)); break;
      case Reduction::amax: y[row] = row_extreme(x, size, false); break;
      case Reduction::amin: y[row] = row_extreme(x, size, true); break;
    }
  }
}

void softmax_rows(bool is_log, const float* x, int64_t rows, int64_t size, float* y, float* scratch) {
  for (int64_t row = 0; row < rows; row++) {
    memcpy(scratch, x + row * size, size_t(size) * sizeof(float));
    softmax_row(scratch, size, is_log);
    memcpy(y + row * size, scratch, size_t(size) * sizeof(float));
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
