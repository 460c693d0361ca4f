// fp32 weights.
#pragma once

#include "panels.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// fp32 weights, as the tile's right operand.
struct Panels {
  const float* first;
  int64_t stride;  // floats from one panel to the next
  FASTGRAPH_INLINE_MEMBER const float* at(int64_t k, int v) const { return first + v * stride + k * kLanes; }
};

// fp32 weights as they are packed.
struct Fp32Weights {
  const GemmLayer& layer;

  static constexpr int vectors(int rows) { return kTileVectors[rows]; }
  static FASTGRAPH_INLINE_MEMBER void narrow(F16, float*) {}

  // Weights of feature k and the eight outputs `eight` of E eights, the last of which are the half panel.
  template <int E>
  struct Eights {
    const float* first;
    int64_t stride;
    FASTGRAPH_INLINE_MEMBER F8 operator()(int64_t k, int eight) const { return load_8(first + eight_at<E>(stride, k, eight)); }
  };

  template <int E>
  FASTGRAPH_INLINE_MEMBER Eights<E> eights(int64_t panel) const {
    const int64_t stride = layer.in_features * kLanes;
    return {static_cast<const float*>(layer.panels) + panel * stride, stride};
  }
  static FASTGRAPH_INLINE_MEMBER int64_t steps(int64_t features) { return features; }
  static FASTGRAPH_INLINE_MEMBER F8 multiply_add(float left, F8 right, F8 sum) { return fma(broadcast_8(left), right, sum); }

  // Sums of one block of k for any number of row tiles, V panels from `panel` on.
  template <int V>
  struct Block {
    Panels panels;
    int64_t begin, end;
    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<F16, R, V> sums(const float* a, int64_t lda) const {
      F16 sum[R][V];
      tile(a, lda, begin, end, panels, sum);
      return give(sum);
    }
  };

  template <int V>
  FASTGRAPH_INLINE_MEMBER Block<V> block(int64_t panel, int64_t begin, int64_t end, int64_t) const {
    const int64_t stride = layer.in_features * kLanes;
    return {{static_cast<const float*>(layer.panels) + panel * stride, stride}, begin, end};
  }
};


void gemm_f32(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float*, int64_t first, int64_t last) {
  layer_of<Fp32Weights>(layer, a, lda, rows, out, ldo, nullptr, first, last);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
