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
FASTGRAPH_OUT_OF_LINE Sums<F8, R, E> sums_of_eights(const float* a, int64_t lda, const Eights eights, int64_t begin, int64_t end) {
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

// fp32 weights as they are packed.
struct Fp32Weights {
  const MlpLayer& layer;

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
    return {layer.panels + panel * stride, stride};
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
    return {{layer.panels + panel * stride, stride}, begin, end};
  }
};

#if defined(__AVX512BF16__)
// bf16 weights and activations, two products at once. `a` holds pairs (mlp_narrow). vdpbf16ps takes denormals as zero.
struct Bf16Weights {
  const MlpLayer& layer;

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
    return {layer.pairs + panel * stride, stride};
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
    return {layer.pairs + panel * stride, stride};
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
    block.pairs = layer.pairs + panel * stride;
    block.stride = stride;
    block.begin = begin;
    block.end = end;
    block.widened = is_widened(rows);
    if (block.widened) block.widen();
    return block;
  }
};
static_assert(kSumBlock % 2 == 0, "blocks of k must hold whole pairs");
#endif

// The half panel, in tiles of eight columns and twice the rows; on AVX2 together with the panel before it in tiles of three
// eights, which load less for what they multiply.
constexpr int most_rows(int eights) { return 12 / eights; }

template <int E, class Weights>
void eights_of(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t panel, bool relu_first) {
  const Weights weights{layer};
  const auto right = weights.template eights<E>(panel);
  const RowTiles tiles = cut_rows(rows, most_rows(E));
  for_sum_blocks(layer.in_features, [&](int64_t begin, int64_t end, bool last) {
    with_largest<most_rows(E)>(tiles, [&](auto largest) {
      for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t row) {
        constexpr int R = decltype(tile_rows)::value;
        const Sums<F8, R, E> sums = sums_of_eights<R, E, Weights>(a + row * lda, lda, right, Weights::steps(begin), Weights::steps(end));
        const int64_t at = row * ldo + panel * kLanes;
#pragma GCC unroll 2
        for (int e = 0; e < E; e += 2) {  // panels: two eights, or one and nothing
          const TakeUp take_up(layer, begin, panel + e / 2, relu_first && last, out + at + e / 2 * kLanes, ldo);
          for (int i = 0; i < R; i++) {
            const F16 total = take_up(e + 1 < E ? join(sums.at[i][e], sums.at[i][e + 1]) : with_zeros(sums.at[i][e]), i);
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
FASTGRAPH_INLINE void whole_panels(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed,
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
      });
    });
  });
}

FASTGRAPH_INLINE bool begins_with_relu(const MlpLayer& layer) { return layer.activation_count > 0 && layer.activations[0] == Activation::relu; }

// The activations that whole_panels has not applied.
void activate_panels(const MlpLayer& layer, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  if (layer.activates_late) return;
  for (int i = begins_with_relu(layer); i < layer.activation_count; i++)
    for (int64_t row = 0; row < rows; row++) activate(layer.activations[i], out + row * ldo + first * kLanes, last - first);
}

template <class Weights>
FASTGRAPH_INLINE void layer_of(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first,
                               int64_t last) {
  const bool relu_first = begins_with_relu(layer);
  int64_t whole = last;
  if (last == layer.panel_count && layer.ends_in_half()) {
    whole -= kRegisters == 2 && last - first > 1 ? 2 : 1;
    if (last - whole == 2) eights_of<3, Weights>(layer, a, lda, rows, out, ldo, narrowed, whole, relu_first);
    else eights_of<1, Weights>(layer, a, lda, rows, out, ldo, narrowed, whole, relu_first);
  }
  whole_panels<Weights>(layer, a, lda, rows, out, ldo, narrowed, first, whole, relu_first);
  activate_panels(layer, rows, out, ldo, first, last);
}

void mlp_layer(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  layer_of<Fp32Weights>(layer, a, lda, rows, out, ldo, nullptr, first, last);
}

void mlp_layer_bf16(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last) {
  layer_of<Bf16Weights>(layer, a, lda, rows, out, ldo, narrowed, first, last);
}

// Applies to y what was left for when results lie without gaps.
void activate_late(const MlpLayer& layer, float* y, int64_t count) {
  for (int i = begins_with_relu(layer); i < layer.activation_count; i++) {
    const int64_t vectors = count / kLanes, done = vectors * kLanes;
    activate(layer.activations[i], y, vectors);
    float rest[kLanes] = {};
    memcpy(rest, y + done, size_t(count - done) * sizeof(float));
    activate(layer.activations[i], rest, 1);
    memcpy(y + done, rest, size_t(count - done) * sizeof(float));
  }
}

void mlp_finish(const MlpLayer& last, float* out, int64_t ldo, int64_t rows, float* y) {
  const int64_t N = last.out_features;
  if (N == 0) return;  // y may be null, and a softmax has no sixteen floats to look at
  const Activation tail = last.activation_count > 0 ? last.activations[last.activation_count - 1] : Activation::none;
  if (tail == Activation::softmax || tail == Activation::log_softmax)
    for (int64_t row = 0; row < rows; row++) softmax_row(out + row * ldo, N, tail == Activation::log_softmax);
  if (last.activates_late) {
    float* to = y;
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < N; i++) *to++ = out[row * ldo + i];
    activate_late(last, y, rows * N);
  } else {
    for (int64_t row = 0; row < rows; row++) memcpy(y + row * N, out + row * ldo, size_t(N) * sizeof(float));
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
