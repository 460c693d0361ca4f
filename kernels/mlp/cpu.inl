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

void mlp_layer(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  const int64_t K = layer.in_features;
  const bool relu_first = layer.activation_count > 0 && layer.activations[0] == Activation::relu;
  const RowTiles tiles = cut_rows(rows);
  with_largest(tiles, [&](auto largest) {
    constexpr int L = decltype(largest)::value;
    // Panels outside, then blocks of k, rows inside: a block of a panel is read from memory once and stays in L1 for
    // all rows (AVX2, one core, DeepLearningModel at 1024 rows: 82 % of the ceiling without the blocks, 85 to 90 % so).
    for_vectors<kTileVectors[L]>(first, last, [&](auto vectors, int64_t panel) {
      constexpr int V = decltype(vectors)::value;
      const Panels weight{layer.panels + panel * K * kLanes, K * kLanes};
      int64_t begin = 0;
      do {  // once for K = 0 too
        const int64_t end = smaller(begin + kSumBlock, K);
        const bool activate_now = relu_first && end == K;
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t row) {
          constexpr int R = decltype(tile_rows)::value;
          F16 sum[R][V];
          tile(a + row * lda, lda, begin, end, weight, sum);
          for (int i = 0; i < R; i++)
            for (int v = 0; v < V; v++) {
              float* to = out + (row + i) * ldo + (panel + v) * kLanes;
              const F16 total = add(load(begin == 0 ? layer.bias + (panel + v) * kLanes : to), sum[i][v]);
              store(to, activate_now ? relu(total) : total);
            }
        });
        begin = end;
      } while (begin < K);
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
