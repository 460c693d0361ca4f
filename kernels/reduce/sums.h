// RowSums of the values of a row, in one order whatever the batch, the threads and the instruction set: sixty-four chains a block of 1024
// values, blocks pairwise, and at the end the sixteen lanes in double precision. The error grows with the logarithm of the length.
#pragma once

#include "../cpu/activation.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {

constexpr int64_t kRowBlock = 1024;

// kCount sums that are taken together.
template <int kCount>
struct RowSums {
  F16 v[kCount];
};

template <int kCount>
FASTGRAPH_INLINE RowSums<kCount> add(RowSums<kCount> a, RowSums<kCount> b) {
#pragma GCC unroll 2
  for (int k = 0; k < kCount; k++) a.v[k] = add(a.v[k], b.v[k]);
  return a;
}

template <int kCount>
FASTGRAPH_INLINE RowSums<kCount> no_sums() {
  RowSums<kCount> zero;
#pragma GCC unroll 2
  for (int k = 0; k < kCount; k++) zero.v[k] = broadcast(0.0f);
  return zero;
}

// The first lanes of `a`, those of `others` beyond.
FASTGRAPH_INLINE F16 first_lanes(F16 a, int64_t count, F16 others) {
  alignas(64) static constexpr float kLane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return select(less(load(kLane), broadcast(float(count))), a, others);
}

// term(F16 x) gives RowSums<kCount>, lane by lane what is added for a value; n is at most kRowBlock.
template <int kCount, class Term>
FASTGRAPH_INLINE RowSums<kCount> block_sums(const float* x, int64_t n, const Term& term) {
  RowSums<kCount> a = no_sums<kCount>(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = add(a, term(load(x + i)));
    b = add(b, term(load(x + i + kLanes)));
    c = add(c, term(load(x + i + 2 * kLanes)));
    d = add(d, term(load(x + i + 3 * kLanes)));
  }
  for (; i + kLanes <= n; i += kLanes) a = add(a, term(load(x + i)));
  if (i < n) {
    RowSums<kCount> last = term(load_first(x + i, n - i));
#pragma GCC unroll 2
    for (int k = 0; k < kCount; k++) last.v[k] = first_lanes(last.v[k], n - i, broadcast(0.0f));
    b = add(b, last);
  }
  return add(add(a, b), add(c, d));
}

template <int kCount, class Term>
__attribute__((noinline)) RowSums<kCount> pairwise_sums(const float* x, int64_t n, const Term& term) {
  if (n <= kRowBlock) return block_sums<kCount>(x, n, term);
  const int64_t blocks = (n + kRowBlock - 1) / kRowBlock, half = blocks / 2 * kRowBlock;
  return add(pairwise_sums<kCount>(x, half, term), pairwise_sums<kCount>(x + half, n - half, term));
}

template <int kCount, class Term>
FASTGRAPH_INLINE RowSums<kCount> row_sums(const float* x, int64_t n, const Term& term) {
  return n <= kRowBlock ? block_sums<kCount>(x, n, term) : pairwise_sums<kCount>(x, n, term);
}

// Folds sixteen lanes pairwise, without an error.
FASTGRAPH_INLINE double lanes_total(F16 x) {
  float lanes[kLanes];
  double wide[kLanes / 2];
  store(lanes, x);
  for (int i = 0; i < kLanes / 2; i++) wide[i] = double(lanes[i]) + double(lanes[i + kLanes / 2]);
  return ((wide[0] + wide[4]) + (wide[2] + wide[6])) + ((wide[1] + wide[5]) + (wide[3] + wide[7]));
}

FASTGRAPH_INLINE double row_sum(const float* x, int64_t n) {
  return lanes_total(row_sums<1>(x, n, [](F16 v) __attribute__((always_inline)) { return RowSums<1>{{v}}; }).v[0]);
}

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
