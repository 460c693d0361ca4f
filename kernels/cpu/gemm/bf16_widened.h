// bf16 weights, widened to fp32 in registers or for a block of k at once.
#pragma once

#include "f32.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// bf16 weights, widened in registers; activations stay fp32. Sums run in the order of the fp32 kernel.
struct Bf16Weights {
  const GemmLayer& layer;

  // Whether a block of k is widened once for all rows, into L1, and not in registers by each tile of rows.
  static constexpr bool is_widened(int64_t rows) { return rows > 4 * kTileRows; }
  static constexpr int vectors(int rows) { return kRegisters == 2 && (rows == 2 || rows == 3) ? kTileVectors[rows] - 1 : kTileVectors[rows]; }
  static FASTGRAPH_INLINE_MEMBER void narrow(F16, float*) {}

  template <int E>
  struct Eights {
    const uint32_t* first;
    int64_t stride;
    FASTGRAPH_INLINE_MEMBER F8 operator()(int64_t k, int eight) const {
      const uint32_t* pairs = first + eight_at<E>(stride, k / 2, eight);
      return k % 2 ? seconds_8(pairs) : firsts_8(pairs);
    }
  };

  template <int E>
  FASTGRAPH_INLINE_MEMBER Eights<E> eights(int64_t panel) const {
    const int64_t stride = (layer.in_features + 1) / 2 * kLanes;
    return {static_cast<const uint32_t*>(layer.panels) + panel * stride, stride};
  }
  static FASTGRAPH_INLINE_MEMBER int64_t steps(int64_t features) { return features; }
  static FASTGRAPH_INLINE_MEMBER F8 multiply_add(float left, F8 right, F8 sum) { return fma(broadcast_8(left), right, sum); }

  template <int V>
  struct Block {
    const uint32_t* pairs;
    int64_t stride, begin, end;
    bool widened;
    float panels[V * kSumBlock * kLanes];  // if widened

    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<F16, R, V> sums_widened(const float* a, int64_t lda) const {
      F16 sum[R][V];
      tile(a + begin, lda, 0, end - begin, Panels{panels, kSumBlock * kLanes}, sum);
      return give(sum);
    }

    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<F16, R, V> sums_in_registers(const float* a, int64_t lda) const {
      F16 sum[R][V];
      clear(sum);
      const uint32_t* words = pairs + begin / 2 * kLanes;
      const float *from = a + begin, *last = a + end - 1;
      const auto first = [&](int v) __attribute__((always_inline)) { return firsts(words + v * stride); };
      for (; from < last; from += 2, words += kLanes) {
        add_products(from, lda, sum, first);
        asm("" : "+r"(words));  // read anew: pairs kept in registers push sums out to memory, half as fast
        add_products(from + 1, lda, sum, [&](int v) __attribute__((always_inline)) {
          return R * V < 6 ? seconds(words + v * stride) : seconds_shifted(words + v * stride);
        });
      }
      if (from == last) add_products(from, lda, sum, first);
      return give(sum);
    }

    template <int R>
    FASTGRAPH_INLINE_MEMBER Sums<F16, R, V> sums(const float* a, int64_t lda) const {
      return widened ? sums_widened<R>(a, lda) : sums_in_registers<R>(a, lda);
    }

    // One panel after another: its weights in registers, activations pass by.
    template <int R, class Right>
    static FASTGRAPH_INLINE_MEMBER void add_products(const float* a, int64_t lda, F16 (&sum)[R][V], const Right& right) {
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) {
        const F16 weights = right(v);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sum[i][v] = fma(broadcast(a[i * lda]), weights, sum[i][v]);
      }
    }

    FASTGRAPH_INLINE_MEMBER void widen() {
      for (int v = 0; v < V; v++) {
        const uint32_t* words = pairs + v * stride + begin / 2 * kLanes;
        float* to = panels + v * kSumBlock * kLanes;
        for (int64_t k = begin; k < end; k += 2, words += kLanes, to += 2 * kLanes) {  // blocks are even, and so is kSumBlock: there is room
          store(to, firsts(words));
          store(to + kLanes, seconds(words));
        }
      }
    }
  };

  template <int V>
  FASTGRAPH_INLINE_MEMBER Block<V> block(int64_t panel, int64_t begin, int64_t end, int64_t rows) const {
    const int64_t stride = (layer.in_features + 1) / 2 * kLanes;
    Block<V> block;
    block.pairs = static_cast<const uint32_t*>(layer.panels) + panel * stride;
    block.stride = stride;
    block.begin = begin;
    block.end = end;
    block.widened = is_widened(rows);
    if (block.widened) block.widen();
    return block;
  }
};
static_assert(kSumBlock % 2 == 0, "blocks of k must hold whole pairs");

void gemm_bf16(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last) {
  layer_of<Bf16Weights>(layer, a, lda, rows, out, ldo, narrowed, first, last);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
