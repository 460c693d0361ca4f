// bf16 weights and activations, by dot products of pairs (AVX-512 BF16).
#pragma once

#include "panels.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// bf16 weights and activations, two products at once. `a` holds pairs (narrow_rows). vdpbf16ps takes denormals as zero.
struct Bf16Weights {
  const GemmLayer& layer;

  static constexpr int vectors(int rows) { return kTileVectors[rows]; }
  // Rounds sixteen results to pairs.
  static FASTGRAPH_INLINE_MEMBER void narrow(F16 total, float* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(total.v)));
  }

  template <int E>
  struct Eights {
    const uint32_t* first;
    int64_t stride;
    FASTGRAPH_INLINE_MEMBER F8 operator()(int64_t k, int eight) const {
      return load_8(reinterpret_cast<const float*>(first + eight_at<E>(stride, k, eight)));
    }
  };

  template <int E>
  FASTGRAPH_INLINE_MEMBER Eights<E> eights(int64_t panel) const {
    const int64_t stride = (layer.in_features + 1) / 2 * kLanes;
    return {static_cast<const uint32_t*>(layer.panels) + panel * stride, stride};
  }
  static FASTGRAPH_INLINE_MEMBER int64_t steps(int64_t features) { return (features + 1) / 2; }
  static FASTGRAPH_INLINE_MEMBER F8 multiply_add(float left, F8 right, F8 sum) {
    return {_mm256_dpbf16_ps(sum.v, __m256bh(_mm256_castps_si256(_mm256_set1_ps(left))), __m256bh(_mm256_castps_si256(right.v)))};
  }

  template <int V>
  struct Block {
    const uint32_t* pairs;
    int64_t stride, begin, end;
    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<F16, R, V> sums(const float* a, int64_t lda) const {
      F16 sum[R][V];
      clear(sum);
      for (int64_t k = begin / 2; k < (end + 1) / 2; k++) {
        __m512bh right[V];
#pragma GCC unroll 12
        for (int v = 0; v < V; v++) right[v] = __m512bh(_mm512_loadu_si512(pairs + v * stride + k * kLanes));
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
          const __m512bh left = __m512bh(_mm512_castps_si512(_mm512_set1_ps(a[i * lda + k])));
#pragma GCC unroll 12
          for (int v = 0; v < V; v++) sum[i][v].v = _mm512_dpbf16_ps(sum[i][v].v, left, right[v]);
        }
      }
      return give(sum);
    }
  };

  template <int V>
  FASTGRAPH_INLINE_MEMBER Block<V> block(int64_t panel, int64_t begin, int64_t end, int64_t) const {
    const int64_t stride = (layer.in_features + 1) / 2 * kLanes;
    return {static_cast<const uint32_t*>(layer.panels) + panel * stride, stride, begin, end};
  }
};

void narrow_rows(const float* a, int64_t lda, int64_t rows, int64_t in_features, float* to) {
  const int64_t words = (in_features + 1) / 2;
  for (int64_t row = 0; row < rows; row++) {
    const float* from = a + row * lda;
    float* pairs = to + row * words;
    int64_t k = 0;
    for (; k + 2 * kLanes <= in_features; k += 2 * kLanes) {
      __builtin_prefetch(from + k + 512);  // rows follow each other: a few lines ahead, also of the next one
      __builtin_prefetch(from + k + 512 + kLanes);
      _mm512_storeu_si512(pairs + k / 2, __m512i(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k + kLanes), _mm512_loadu_ps(from + k))));
    }
    if (k < in_features) {
      float tail[2 * kLanes] = {};
      memcpy(tail, from + k, size_t(in_features - k) * sizeof(float));
      const __m512i last = __m512i(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(tail + kLanes), _mm512_loadu_ps(tail)));
      _mm512_mask_storeu_epi32(pairs + k / 2, __mmask16((1u << (words - k / 2)) - 1), last);
    }
  }
}

void gemm_bf16(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last) {
  layer_of<Bf16Weights>(layer, a, lda, rows, out, ldo, narrowed, first, last);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
