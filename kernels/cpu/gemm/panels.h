// The loops of a layer over panels, blocks of k and tiles of rows, for any format of weights (f32.h shows what one has).
#pragma once

#include "epilogue.h"
#include "tile.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Calls block(begin, end, whether it is the last) for the blocks of k; once for K = 0 too.
template <class Block>
FASTGRAPH_INLINE void for_sum_blocks(int64_t K, const Block& block) {
  const int64_t size = sum_block(K);
  int64_t begin = 0;
  do {
    const int64_t end = smaller(begin + size, K);
    block(begin, end, end == K);
    begin = end;
  } while (begin < K);
}

// Of R rows and V vectors.
template <class Vector, int R, int V>
struct Sums {
  Vector at[R][V];
};

// Gives accumulators back from a function of its own: inlined into the loops around it, a tile loses registers to them and
// half its speed, for 2 % that the call costs.
#define FASTGRAPH_OUT_OF_LINE __attribute__((noinline))
template <class Vector, int R, int V>
FASTGRAPH_INLINE Sums<Vector, R, V> give(const Vector (&sum)[R][V]) {
  Sums<Vector, R, V> sums;
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) sums.at[i][v] = sum[i][v];
  return sums;
}

FASTGRAPH_INLINE void clear(F16& sum) { sum = broadcast(0.0f); }
FASTGRAPH_INLINE void clear(F8& sum) { sum = broadcast_8(0.0f); }
template <class Vector, int R, int V>
FASTGRAPH_INLINE void clear(Vector (&sum)[R][V]) {
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) clear(sum[i][v]);
}

// Where the weights of step k and of eight outputs are, of E eights: a panel and the half panel behind it, or that alone.
template <int E>
FASTGRAPH_INLINE int64_t eight_at(int64_t stride, int64_t k, int eight) {
  const bool half = eight == E - 1;
  return half ? (E - 1) / 2 * stride + k * kLanes / 2 : k * kLanes + eight * kLanes / 2;
}

// The sums of one block of k, E times eight outputs beside R rows. Each three rows have a pointer, which the compiler has to
// keep as it is: twelve would not fit the general registers.
template <int R, int E, class Weights, class Eights>
FASTGRAPH_OUT_OF_LINE Sums<F8, R, E> half_panel_sums(const float* a, int64_t lda, const Eights eights, int64_t begin, int64_t end) {
  constexpr int kGroups = (R + 2) / 3;
  const float* rows[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; g++) rows[g] = a + g * 3 * lda + begin;
  F8 total[R][E];
  clear(total);
  for (int64_t k = begin; k < end; k++) {
    F8 right[E];
#pragma GCC unroll 3
    for (int e = 0; e < E; e++) right[e] = eights(k, e);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      if (i % 3 == 0) asm("" : "+r"(rows[i / 3]));
      const float left = rows[i / 3][i % 3 * lda];
#pragma GCC unroll 3
      for (int e = 0; e < E; e++) total[i][e] = Weights::multiply_add(left, right[e], total[i][e]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; g++) rows[g]++;
  }
  return give(total);
}

// The half panel, in tiles of eight columns and twice the rows; on AVX2 together with the panel before it in tiles of three
// eights, which load less for what they multiply.
constexpr int most_rows(int eights) { return 12 / eights; }

template <int E, class Weights>
void half_panels(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t panel, bool relu_first) {
  const Weights weights{layer};
  const auto right = weights.template eights<E>(panel);
  const RowTiles tiles = cut_rows(rows, most_rows(E));
  for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last) {
    with_largest<most_rows(E)>(tiles, [&](auto largest) {
      for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t row) {
        constexpr int R = decltype(tile_rows)::value;
        const Sums<F8, R, E> sums = half_panel_sums<R, E, Weights>(a + row * lda, lda, right, Weights::steps(begin), Weights::steps(end));
        const int64_t at = row * ldo + panel * kLanes;
#pragma GCC unroll 2
        for (int e = 0; e < E; e += 2) {  // panels: two eights, or one and nothing
          const Epilogue epilogue(layer, begin, panel + e / 2, relu_first && last, out + at + e / 2 * kLanes, ldo);
          for (int i = 0; i < R; i++) {
            const F16 total = epilogue(e + 1 < E ? join(sums.at[i][e], sums.at[i][e + 1]) : with_zeros(sums.at[i][e]), i);
            const int64_t to = at + i * ldo + e / 2 * kLanes;
            if (narrowed && last) Weights::narrow(total, narrowed + to / 2);
            else store(out + to, total);
          }
        }
      });
    });
  });
}

// Panels [first, last) of a layer. `narrowed` (Bf16Weights) is half as wide as `out`, or null.
template <class Weights>
FASTGRAPH_INLINE void whole_panels(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed,
                                   int64_t first, int64_t last, bool relu_first) {
  const Weights weights{layer};
  const RowTiles tiles = cut_rows(rows);
  with_largest(tiles, [&](auto largest) {
    constexpr int L = decltype(largest)::value;
    // Panels outside, then blocks of k, rows inside: a block of a panel is read from memory once and stays in L1 for
    // all rows (AVX2, one core, DeepLearningModel at 1024 rows: 82 % of the ceiling without the blocks, 85 to 90 % so).
    for_vectors<Weights::vectors(L)>(first, last, [&](auto vectors, int64_t panel) {
      constexpr int V = decltype(vectors)::value;
      for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last_block) {
        const auto block = weights.template block<V>(panel, begin, end, rows);
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t row) {
          constexpr int R = decltype(tile_rows)::value;
          const Sums<F16, R, V> sums = block.template sums<R>(a + row * lda, lda);
          const int64_t at = row * ldo + panel * kLanes;
          const Epilogue epilogue(layer, begin, panel, relu_first && last_block, out + at, ldo);
          const auto each = [&](const auto& give) {
#pragma GCC unroll 8
            for (int i = 0; i < R; i++)
#pragma GCC unroll 12
              for (int v = 0; v < V; v++) give(at + i * ldo + v * kLanes, epilogue(sums.at[i][v], i, v));
          };
          if (narrowed && last_block) each([&](int64_t to, F16 total) { Weights::narrow(total, narrowed + to / 2); });
          else each([&](int64_t to, F16 total) { store(out + to, total); });
        });
      });
    });
  });
}

template <class Weights>
FASTGRAPH_INLINE void layer_of(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first,
                               int64_t last) {
  const bool relu_first = begins_with_relu(layer);
  int64_t whole = last;
  if (last == layer.panel_count && layer.ends_in_half()) {
    whole -= kRegisters == 2 && last - first > 1 ? 2 : 1;
    if (last - whole == 2) half_panels<3, Weights>(layer, a, lda, rows, out, ldo, narrowed, whole, relu_first);
    else half_panels<1, Weights>(layer, a, lda, rows, out, ldo, narrowed, whole, relu_first);
  }
  whole_panels<Weights>(layer, a, lda, rows, out, ldo, narrowed, first, whole, relu_first);
  activate_panels(layer, rows, out, ldo, first, last);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
