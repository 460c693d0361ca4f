// The mlp kernels, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/tile.h"
#include "cpu.h"

#include <math.h>

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// fp32 weights, as the tile's right operand.
struct Panels {
  const float* first;
  int64_t stride;  // floats from one panel to the next
  FASTGRAPH_INLINE_MEMBER const float* at(int64_t k, int v) const { return first + v * stride + k * kLanes; }
};

// What the sums of one block of k are added to: the bias before the first block, then what `out` holds. `floor` is zero where
// a ReLU follows.
struct TakeUp {
  const float* base;
  int64_t stride;
  F16 floor;

  FASTGRAPH_INLINE_MEMBER TakeUp(const MlpLayer& layer, int64_t begin, int64_t panel, bool rectify, const float* out, int64_t ldo)
      : base(begin == 0 ? layer.bias + panel * kLanes : out), stride(begin == 0 ? 0 : ldo), floor(broadcast(rectify ? 0.0f : -INFINITY)) {}

  // Row i of a tile, panel v of it; a NaN stays one, as in relu().
  FASTGRAPH_INLINE_MEMBER F16 operator()(F16 sum, int i, int v = 0) const { return max(floor, add(load(base + i * stride + v * kLanes), sum)); }
};

// Calls block(begin, end, whether it is the last) for the blocks of k; once for K = 0 too.
template <class Block>
FASTGRAPH_INLINE void for_sum_blocks(int64_t K, const Block& block, int64_t size = kSumBlock) {
  int64_t begin = 0;
  do {
    const int64_t end = smaller(begin + size, K);
    block(begin, end, end == K);
    begin = end;
  } while (begin < K);
}

template <int R, int V>
struct Sums {
  F16 at[R][V];
};

// Gives accumulators back from a function of its own: inlined into the loops around it, a tile loses registers to them and
// half its speed, for 2 % that the call costs.
#define FASTGRAPH_OUT_OF_LINE __attribute__((noinline))
template <int R, int V>
FASTGRAPH_INLINE Sums<R, V> give(const F16 (&sum)[R][V]) {
  Sums<R, V> sums;
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) sums.at[i][v] = sum[i][v];
  return sums;
}

template <int R, int V>
FASTGRAPH_INLINE void clear(F16 (&sum)[R][V]) {
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) sum[i][v] = broadcast(0.0f);
}

// fp32 weights as they are packed.
struct Fp32Weights {
  const MlpLayer& layer;

  static FASTGRAPH_INLINE_MEMBER int64_t block_size(int64_t) { return kSumBlock; }
  static FASTGRAPH_INLINE_MEMBER void narrow(F16, float*) {}

#if defined(FASTGRAPH_HAS_F8)
  template <int R>
  static FASTGRAPH_INLINE_MEMBER void add_half(const MlpLayer& layer, int64_t panel, int64_t begin, int64_t end, const float* a, int64_t lda, F8 (&sum)[R]) {
    const float* weight = layer.panels + panel * layer.in_features * kLanes;
    for (int64_t k = begin; k < end; k++) {
      const F8 right = load_8(weight + k * kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) sum[i] = fma(broadcast_8(a[i * lda + k]), right, sum[i]);
    }
  }
#endif

  // Sums of one block of k for any number of row tiles, V panels from `panel` on.
  template <int V>
  struct Block {
    Panels panels;
    int64_t begin, end;
    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<R, V> sums(const float* a, int64_t lda) const {
      F16 sum[R][V];
      tile(a, lda, begin, end, panels, sum);
      return give(sum);
    }
  };

  template <int V>
  FASTGRAPH_INLINE_MEMBER Block<V> block(int64_t panel, int64_t begin, int64_t end, int64_t) const {
    const int64_t stride = layer.in_features * kLanes;
    return {{layer.panels + panel * stride, stride}, begin, end};
  }
};

#if defined(__AVX512BF16__)
// bf16 weights and activations, two products at once. `a` holds pairs (mlp_narrow). vdpbf16ps takes denormals as zero.
struct Bf16Weights {
  const MlpLayer& layer;

  // Even blocks of an even size: three panels of one fit into L1 beside the rows.
  static FASTGRAPH_INLINE_MEMBER int64_t block_size(int64_t K) {
    const int64_t count = (K + kSumBlock + 15) / (kSumBlock + 16), size = count ? (K + count - 1) / count : 1;
    return size + size % 2;
  }
  // Rounds sixteen results to pairs.
  static FASTGRAPH_INLINE_MEMBER void narrow(F16 total, float* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(total.v)));
  }

  template <int R>
  static FASTGRAPH_INLINE_MEMBER void add_half(const MlpLayer& layer, int64_t panel, int64_t begin, int64_t end, const float* a, int64_t lda, F8 (&sum)[R]) {
    const uint32_t* pairs = layer.pairs + panel * ((layer.in_features + 1) / 2) * kLanes;
    for (int64_t k = begin / 2; k < (end + 1) / 2; k++) {
      const __m256bh right = __m256bh(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs + k * kLanes)));
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) sum[i].v = _mm256_dpbf16_ps(sum[i].v, __m256bh(_mm256_castps_si256(_mm256_set1_ps(a[i * lda + k]))), right);
    }
  }

  template <int V>
  struct Block {
    const uint32_t* pairs;
    int64_t stride, begin, end;
    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<R, V> sums(const float* a, int64_t lda) const {
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
    return {layer.pairs + panel * stride, stride, begin, end};
  }
};

void mlp_narrow(const float* a, int64_t lda, int64_t rows, int64_t in_features, float* to) {
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
#else
// bf16 weights, widened in registers; activations stay fp32. Sums run in the order of the fp32 kernel.
struct Bf16Weights {
  const MlpLayer& layer;

  static FASTGRAPH_INLINE_MEMBER int64_t block_size(int64_t) { return kSumBlock; }
  static FASTGRAPH_INLINE_MEMBER void narrow(F16, float*) {}

#if defined(FASTGRAPH_HAS_F8)
  template <int R>
  static FASTGRAPH_INLINE_MEMBER void add_half(const MlpLayer& layer, int64_t panel, int64_t begin, int64_t end, const float* a, int64_t lda, F8 (&sum)[R]) {
    const uint32_t* pairs = layer.pairs + panel * ((layer.in_features + 1) / 2) * kLanes;
    for (int64_t k = begin; k < end; k++) {
      const F8 right{k % 2 ? seconds_8(pairs + k / 2 * kLanes) : firsts_8(pairs + k / 2 * kLanes)};
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) sum[i] = fma(broadcast_8(a[i * lda + k]), right, sum[i]);
    }
  }
#endif

  template <int V>
  struct Block {
    const uint32_t* pairs;
    int64_t stride, begin, end;
    bool widened;                      // for many rows: once per block instead of once per tile
    float panels[V * kSumBlock * kLanes];

    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<R, V> sums_widened(const float* a, int64_t lda) const {
      F16 sum[R][V];
      tile(a + begin, lda, 0, end - begin, Panels{panels, kSumBlock * kLanes}, sum);
      return give(sum);
    }

    template <int R>
    FASTGRAPH_OUT_OF_LINE Sums<R, V> sums_in_registers(const float* a, int64_t lda) const {
      F16 sum[R][V];
      clear(sum);
      int64_t k = begin;
      for (; k + 1 < end; k += 2) {
        add_products(a + k, lda, sum, [&](int v) { return firsts(at(k, v)); });
        add_products(a + k + 1, lda, sum, [&](int v) { return seconds(at(k, v)); });
      }
      if (k < end) add_products(a + k, lda, sum, [&](int v) { return firsts(at(k, v)); });
      return give(sum);
    }

    template <int R>
    FASTGRAPH_INLINE_MEMBER Sums<R, V> sums(const float* a, int64_t lda) const {
      return widened ? sums_widened<R>(a, lda) : sums_in_registers<R>(a, lda);
    }

    FASTGRAPH_INLINE_MEMBER const uint32_t* at(int64_t k, int v) const { return pairs + v * stride + k / 2 * kLanes; }

    template <int R, class Right>
    static FASTGRAPH_INLINE_MEMBER void add_products(const float* a, int64_t lda, F16 (&sum)[R][V], const Right& right) {
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) {
        const F16 x = right(v);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sum[i][v] = fma(broadcast(a[i * lda]), x, sum[i][v]);
      }
    }

    FASTGRAPH_INLINE_MEMBER void widen() {
      for (int v = 0; v < V; v++)
        for (int64_t k = begin; k < end; k += 2) {
          float* to = panels + (v * kSumBlock + k - begin) * kLanes;
          store(to, firsts(at(k, v)));
          if (k + 1 < end) store(to + kLanes, seconds(at(k, v)));
        }
    }
  };

  template <int V>
  FASTGRAPH_INLINE_MEMBER Block<V> block(int64_t panel, int64_t begin, int64_t end, int64_t tiles) const {
    const int64_t stride = (layer.in_features + 1) / 2 * kLanes;
    Block<V> block;
    block.pairs = layer.pairs + panel * stride;
    block.stride = stride;
    block.begin = begin;
    block.end = end;
    block.widened = tiles > 2;
    if (block.widened) block.widen();
    return block;
  }
};
static_assert(kSumBlock % 2 == 0, "blocks of k must hold whole pairs");
#endif

#if defined(FASTGRAPH_HAS_F8)
// The last panel where at most eight of its outputs exist: half the work, in tiles of twice the rows.
constexpr int kHalfRows = 12;

FASTGRAPH_INLINE bool is_half(const MlpLayer& layer) { return (layer.out_features + kLanes - 1) % kLanes < kLanes / 2; }

template <class Weights>
void half_panel(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t panel, bool relu_first) {
  const RowTiles tiles = cut_rows(rows, kHalfRows);
  for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last) {
    with_largest<kHalfRows>(tiles, [&](auto largest) {
      for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t row) {
        constexpr int R = decltype(tile_rows)::value;
        const float* left = a + row * lda;
        F8 sum[R];
#pragma GCC unroll 12
        for (int i = 0; i < R; i++) sum[i] = broadcast_8(0.0f);
        Weights::add_half(layer, panel, begin, end, left, lda, sum);
        float* to = out + row * ldo + panel * kLanes;
        const TakeUp take_up(layer, begin, panel, relu_first && last, to, ldo);
        for (int i = 0; i < R; i++) {
          const F16 total = take_up(with_zeros(sum[i]), i);
          if (narrowed && last) Weights::narrow(total, narrowed + ((row + i) * ldo + panel * kLanes) / 2);
          else store(to + i * ldo, total);
        }
      });
    });
  }, Weights::block_size(layer.in_features));
}
#endif

// Panels [first, last) of a layer. `narrowed` (Bf16Weights) is half as wide as `out`, or null.
template <class Weights>
FASTGRAPH_INLINE void whole_panels(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed,
                                   int64_t first, int64_t last, bool relu_first) {
  const Weights weights{layer};
  const RowTiles tiles = cut_rows(rows);
  with_largest(tiles, [&](auto largest) {
    constexpr int L = decltype(largest)::value;
    // Panels outside, then blocks of k, rows inside: a block of a panel is read from memory once and stays in L1 for
    // all rows (AVX2, one core, DeepLearningModel at 1024 rows: 82 % of the ceiling without the blocks, 85 to 90 % so).
    for_vectors<kTileVectors[L]>(first, last, [&](auto vectors, int64_t panel) {
      constexpr int V = decltype(vectors)::value;
      for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last_block) {
        const auto block = weights.template block<V>(panel, begin, end, tiles.count);
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t row) {
          constexpr int R = decltype(tile_rows)::value;
          const Sums<R, V> sums = block.template sums<R>(a + row * lda, lda);
          const int64_t at = row * ldo + panel * kLanes;
          const TakeUp take_up(layer, begin, panel, relu_first && last_block, out + at, ldo);
          const auto each = [&](const auto& give) {
#pragma GCC unroll 8
            for (int i = 0; i < R; i++)
#pragma GCC unroll 12
              for (int v = 0; v < V; v++) give(at + i * ldo + v * kLanes, take_up(sums.at[i][v], i, v));
          };
          if (narrowed && last_block) each([&](int64_t to, F16 total) { Weights::narrow(total, narrowed + to / 2); });
          else each([&](int64_t to, F16 total) { store(out + to, total); });
        });
      }, Weights::block_size(layer.in_features));
    });
  });
}

FASTGRAPH_INLINE bool begins_with_relu(const MlpLayer& layer) { return layer.activation_count > 0 && layer.activations[0] == Activation::relu; }

// The activations that whole_panels has not applied.
void activate_panels(const MlpLayer& layer, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  for (int i = begins_with_relu(layer); i < layer.activation_count; i++)
    for (int64_t row = 0; row < rows; row++) activate(layer.activations[i], out + row * ldo + first * kLanes, last - first);
}

template <class Weights>
FASTGRAPH_INLINE void layer_of(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first,
                               int64_t last) {
  int64_t whole = last;
#if defined(FASTGRAPH_HAS_F8)
  if (last == layer.panel_count && is_half(layer)) half_panel<Weights>(layer, a, lda, rows, out, ldo, narrowed, --whole, begins_with_relu(layer));
#endif
  whole_panels<Weights>(layer, a, lda, rows, out, ldo, narrowed, first, whole, begins_with_relu(layer));
  activate_panels(layer, rows, out, ldo, first, last);
}

void mlp_layer(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  layer_of<Fp32Weights>(layer, a, lda, rows, out, ldo, nullptr, first, last);
}

void mlp_layer_bf16(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last) {
  layer_of<Bf16Weights>(layer, a, lda, rows, out, ldo, narrowed, first, last);
}

void mlp_finish(const MlpLayer& last, float* out, int64_t ldo, int64_t rows, float* y) {
  const int64_t N = last.out_features;
  if (N == 0) return;  // y may be null, and a softmax has no sixteen floats to look at
  const Activation tail = last.activation_count > 0 ? last.activations[last.activation_count - 1] : Activation::none;
  for (int64_t row = 0; row < rows; row++) {
    if (tail == Activation::softmax || tail == Activation::log_softmax) softmax_row(out + row * ldo, N, tail == Activation::log_softmax);
    memcpy(y + row * N, out + row * ldo, size_t(N) * sizeof(float));
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
