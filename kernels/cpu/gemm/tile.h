// The one inner loop of the project: a register tile of R rows x V vectors,
//
//     sum[i][v] = sum over k of  a[i, k] * b[k, v]        b[k, v] is sixteen floats
//
// used by `mlp` (rows are samples, b is the packed weight) and by `conv_pool` (rows are
// output channels, b is a shifted view of the image).
//
// Order of the sum, part of the package's contract (same bits on every ISA, for every
// batch and thread count): k runs upwards in blocks of sum_block(K); within a block one
// fused multiply-add after another from zero; the block's sum is then added to the total,
// which starts at the bias. Blocks bound the growth of rounding errors: for K = 784 the
// error expected of random signs is 1.8 times below that of one long chain.
#pragma once

#include "../simd/simd.h"
#include "gemm.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {

// Blocks are as even as can be, of an even size and at most so long: 784 is 262 + 262 + 260. Three panels of bf16 of that
// length, or one of fp32 beside the rows of a tile, fit into L1.
constexpr int64_t kSumBlock = kMaxSumBlock;

FASTGRAPH_INLINE int64_t sum_block(int64_t K) {
  const int64_t count = (K + kSumBlock - 1) / kSumBlock, size = count ? (K + count - 1) / count : 0;
  return size + size % 2;
}

// The sum of one block, k in [begin, end): sum[i][v] = a[i, k] * b[k, v] summed over k.
template <int R, int V, class Source>
FASTGRAPH_INLINE void tile(const float* a, int64_t lda, int64_t begin, int64_t end, const Source& b, F16 (&sum)[R][V]) {
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) sum[i][v] = broadcast(0.0f);
#pragma GCC unroll 2
  for (int64_t k = begin; k < end; k++) {
    // What there is less of stays in registers, the other operand passes by: 3 x 2 on AVX2 needs 12 + 3 + 1 registers
    // so, and reaches 90 % of the ceiling; with its 4 right ones held it would spill (45 %).
    if constexpr (R < V * kRegisters) {
      F16 left[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) left[i] = broadcast(a[i * lda + k]);
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) fma_column(left, b.at(k, v), v, sum);
    } else {
      F16 right[V];
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) right[v] = load(b.at(k, v));
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const F16 left = broadcast(a[i * lda + k]);
#pragma GCC unroll 12
        for (int v = 0; v < V; v++) sum[i][v] = fma(left, right[v], sum[i][v]);
      }
    }
  }
}

template <int N>
struct Int { static constexpr int value = N; };

// Rows are cut into the fewest tiles of at most `most`, as even as possible, since a thin last tile
// would leave the multipliers waiting: `largest` rows each, or one fewer.
struct RowTiles {
  int64_t count, largest, full;  // the first `full` tiles have `largest` rows
};

FASTGRAPH_INLINE RowTiles cut_rows(int64_t rows, int most = kTileRows) {
  const int64_t count = (rows + most - 1) / most, largest = (rows + count - 1) / count;
  return {count, largest, rows - count * (largest - 1)};
}

// Calls body(Int<tiles.largest>), which is at most Most.
template <int Most = kTileRows, class Body>
FASTGRAPH_INLINE void with_largest(const RowTiles& tiles, const Body& body) {
  if constexpr (Most > 1)
    if (tiles.largest < Most) return with_largest<Most - 1>(tiles, body);
  body(Int<Most>{});
}

// Calls body(Int<rows of the tile>, its first row) for every tile; R is tiles.largest.
template <int R, class Body>
FASTGRAPH_INLINE void for_row_tiles(const RowTiles& tiles, const Body& body) {
  for (int64_t t = 0; t < tiles.full; t++) body(Int<R>{}, t * R);
  if constexpr (R > 1)
    for (int64_t t = tiles.full; t < tiles.count; t++) body(Int<R - 1>{}, tiles.full + t * (R - 1));
}

// Walks [begin, end) in steps of V vectors, then of V/2, V/4 ... 1, calling body(Int<step>, first).
template <int V, class Body>
FASTGRAPH_INLINE void for_vectors(int64_t begin, int64_t end, const Body& body) {
  for (; begin + V <= end; begin += V) body(Int<V>{}, begin);
  if constexpr (V > 1) for_vectors<V / 2>(begin, end, body);
}

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
