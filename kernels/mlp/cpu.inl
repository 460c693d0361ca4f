// The mlp kernels, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/tile.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

struct Panels {
  const float* first;
  int64_t stride;  // floats from one panel to the next
  FASTGRAPH_INLINE_MEMBER const float* at(int64_t k, int v) const { return first + v * stride + k * kLanes; }
};

// Adds the sums of one block of k, which begins at `begin`, to a row of a tile: to the bias where it is the first.
FASTGRAPH_INLINE void take_up(const MlpLayer& layer, F16 sum, int64_t begin, int64_t panel, bool rectify, float* to) {
  const F16 total = add(load(begin == 0 ? layer.bias + panel * kLanes : to), sum);
  store(to, rectify ? relu(total) : total);
}

// Calls block(begin, end, whether it is the last) for the blocks of k; once for K = 0 too.
template <class Block>
FASTGRAPH_INLINE void for_sum_blocks(int64_t K, const Block& block) {
  int64_t begin = 0;
  do {
    const int64_t end = smaller(begin + kSumBlock, K);
    block(begin, end, end == K);
    begin = end;
  } while (begin < K);
}

#if defined(FASTGRAPH_HAS_F8)
// The last panel where at most eight of its outputs exist: half the work, in tiles of twice the rows.
constexpr int kHalfRows = 12;

FASTGRAPH_INLINE bool is_half(const MlpLayer& layer) { return (layer.out_features + kLanes - 1) % kLanes < kLanes / 2; }

void half_panel(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t panel, bool relu_first) {
  const float* weight = layer.panels + panel * layer.in_features * kLanes;
  const RowTiles tiles = cut_rows(rows, kHalfRows);
  for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last) {
    with_largest<kHalfRows>(tiles, [&](auto largest) {
      for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t row) {
        constexpr int R = decltype(tile_rows)::value;
        const float* left = a + row * lda;
        F8 sum[R];
#pragma GCC unroll 12
        for (int i = 0; i < R; i++) sum[i] = broadcast_8(0.0f);
        for (int64_t k = begin; k < end; k++) {
          const F8 right = load_8(weight + k * kLanes);
#pragma GCC unroll 12
          for (int i = 0; i < R; i++) sum[i] = fma(broadcast_8(left[i * lda + k]), right, sum[i]);
        }
        for (int i = 0; i < R; i++) take_up(layer, with_zeros(sum[i]), begin, panel, relu_first && last, out + (row + i) * ldo + panel * kLanes);
      });
    });
  });
}
#endif

void mlp_layer(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  const int64_t K = layer.in_features;
  const bool relu_first = layer.activation_count > 0 && layer.activations[0] == Activation::relu;
  int64_t whole = last;
#if defined(FASTGRAPH_HAS_F8)
  if (last == layer.panel_count && is_half(layer)) {
    whole--;
    half_panel(layer, a, lda, rows, out, ldo, whole, relu_first);
  }
#endif
  const RowTiles tiles = cut_rows(rows);
  with_largest(tiles, [&](auto largest) {
    constexpr int L = decltype(largest)::value;
    // Panels outside, then blocks of k, rows inside: a block of a panel is read from memory once and stays in L1 for
    // all rows (AVX2, one core, DeepLearningModel at 1024 rows: 82 % of the ceiling without the blocks, 85 to 90 % so).
    for_vectors<kTileVectors[L]>(first, whole, [&](auto vectors, int64_t panel) {
      constexpr int V = decltype(vectors)::value;
      const Panels weight{layer.panels + panel * K * kLanes, K * kLanes};
      for_sum_blocks(K, [&](int64_t begin, int64_t end, bool last_block) {
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t row) {
          constexpr int R = decltype(tile_rows)::value;
          F16 sum[R][V];
          tile(a + row * lda, lda, begin, end, weight, sum);
          for (int i = 0; i < R; i++)
            for (int v = 0; v < V; v++)
              take_up(layer, sum[i][v], begin, panel + v, relu_first && last_block, out + (row + i) * ldo + (panel + v) * kLanes);
        });
      });
    });
  });
  for (int i = relu_first; i < layer.activation_count; i++)
    for (int64_t row = 0; row < rows; row++) activate(layer.activations[i], out + row * ldo + first * kLanes, last - first);
}

void mlp_finish(const MlpLayer& last, float* out, int64_t ldo, int64_t rows, float* y) {
  const int64_t N = last.out_features;
  const Activation tail = last.activation_count > 0 ? last.activations[last.activation_count - 1] : Activation::none;
  for (int64_t row = 0; row < rows; row++) {
    if (tail == Activation::softmax || tail == Activation::log_softmax) softmax_row(out + row * ldo, N, tail == Activation::log_softmax);
    memcpy(y + row * N, out + row * ldo, size_t(N) * sizeof(float));
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
