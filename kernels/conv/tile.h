// The register tile of a convolution: R pixels beside V panels, as ../cpu/gemm/tile.h has it, with taps that lie in segments, a pointer
// to every third pixel (one for each would not fit the general registers), and weights fetched ahead.
#pragma once

#include "../cpu/activation.h"
#include "kernels.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Rows of the largest tile beside so many panels, or the half of one. GFLOP/s on one core of Golden Cove at k = 64: 4 x 6 190, 3 x 7 189, 2 x 11 189, 1 x 24 166.
#if defined(__AVX512F__)
constexpr int kConvRows[kMaxConvPanels + 1] = {14, 14, 12, 8, 6};
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kConvRows[kMaxConvPanels + 1] = {12, 6, 0, 0, 0};
#else
constexpr int kConvRows[kMaxConvPanels + 1] = {4, 4, 0, 0, 0};
#endif

// All lanes of a panel, or the first eight.
struct WholePanel {
  using Vector = F16;
  static FASTGRAPH_INLINE_MEMBER F16 load(const float* p) { return load_once(p); }
  static FASTGRAPH_INLINE_MEMBER F16 all(float x) { return broadcast(x); }
};
struct HalfPanel {
  using Vector = F8;
  static FASTGRAPH_INLINE_MEMBER F8 load(const float* p) {
    F8 lanes = load_8(p);
#if defined(__AVX2__)
    asm("" : "+x"(lanes.v));
#endif
    return lanes;
  }
  static FASTGRAPH_INLINE_MEMBER F8 all(float x) { return broadcast_8(x); }
};

template <class Panel, int R, int V>
FASTGRAPH_INLINE void conv_products(const ConvTile& t, typename Panel::Vector (&sum)[R][V]) {
  constexpr int kGroups = (R + 2) / 3;
  const float *weights = t.weights, *ahead = t.ahead;
  const int64_t stride = t.pixel_stride, panel_stride = t.panel_stride;
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sum[i][v] = Panel::all(0.0f);
  for (const ConvSegment *s = t.segments, *end = s + t.segment_count; s < end; s++) {
    const float* rows[kGroups];
#pragma GCC unroll 5
    for (int g = 0; g < kGroups; g++) rows[g] = t.pixels + s->offset + 3 * g * stride;
    const auto step = [&](int k) __attribute__((always_inline)) {
      typename Panel::Vector right[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) right[v] = Panel::load(weights + v * panel_stride + k * kLanes);
      __builtin_prefetch(ahead + k * kLanes, 0, 2);
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) {
        if (i % 3 == 0) asm("" : "+r"(rows[i / 3]));
        const auto left = Panel::all(rows[i / 3][i % 3 * stride + k]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[i][v] = fma(left, right[v], sum[i][v]);
      }
    };
    const auto advance = [&](int steps) __attribute__((always_inline)) {
#pragma GCC unroll 5
      for (int g = 0; g < kGroups; g++) rows[g] += steps;
      weights += steps * kLanes;
      ahead += steps * kLanes;
    };
    int64_t k = s->length;
    for (; k >= 4; k -= 4) {
      step(0);
      step(1);
      step(2);
      step(3);
      advance(4);
    }
    for (; k > 0; k--) {
      step(0);
      advance(1);
    }
  }
}

// All lanes, the first eight, or fewer by a mask: with one, AVX2 of Zen 4 takes eighteen cycles for eight.
template <int full>
FASTGRAPH_INLINE void store_full(float* to, F16 x) {
  if constexpr (full == kLanes) return store(to, x);
  float all[kLanes];
  store(all, x);
  memcpy(to, all, full * sizeof(float));
}

// What becomes of the sums; `clamps`: whether there is anything to clamp to; `full`: lanes that the last panel has at most. A branch more
// for other lanes costs AVX2 a fifth of the tile's speed, in registers.
template <bool clamps, int full, int R, int V>
FASTGRAPH_INLINE void conv_epilogue(const ConvTile& t, const F16 (&sum)[R][V]) {
  const F16 low = broadcast(t.low), high = broadcast(t.high);
  const auto finish = [&](int i, int v, const auto& load_residual, const auto& put) __attribute__((always_inline)) {
    F16 total = sum[i][v];
    if (t.base) total = add(load(t.base + i * t.base_stride + v * kLanes), total);
    if (t.residual) total = add(total, load_residual(t.residual + i * t.residual_stride + v * kLanes));
    if constexpr (clamps) total = clamp(total, low, high);
    put(t.out + i * t.out_stride + v * kLanes, total);
  };
  const auto all = [](const float* from) __attribute__((always_inline)) { return load(from); };
  const auto put_all = [](float* to, F16 x) __attribute__((always_inline)) { store(to, x); };
  const auto some = [&](const float* from) __attribute__((always_inline)) { return load_first(from, t.lanes); };
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int v = 0; v + 1 < V; v++) finish(i, v, all, put_all);
  if (t.lanes == full) {
    const auto full_residual = [](const float* from) __attribute__((always_inline)) { return full == kLanes ? load(from) : load_first(from, full); };
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) finish(i, V - 1, full_residual, [](float* to, F16 x) __attribute__((always_inline)) { store_full<full>(to, x); });
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) finish(i, V - 1, some, [&](float* to, F16 x) __attribute__((always_inline)) { store_first(to, x, t.lanes); });
  }
}

template <int R, int V>
__attribute__((noinline)) void conv_tile(const ConvTile& t) {
  F16 sum[R][V];
  conv_products<WholePanel>(t, sum);
  if (t.clamps) conv_epilogue<true, kLanes>(t, sum);
  else conv_epilogue<false, kLanes>(t, sum);
}

template <int R>
__attribute__((noinline)) void conv_half_tile(const ConvTile& t) {
  F8 sum[R][1];
  conv_products<HalfPanel>(t, sum);
  F16 whole[R][1];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) whole[i][0] = with_zeros(sum[i][0]);
  if (t.clamps) conv_epilogue<true, kLanes / 2>(t, whole);
  else conv_epilogue<false, kLanes / 2>(t, whole);
}

// tiles[0] are those of half a panel.
struct ConvTiles {
  void (*at[kMaxConvPanels + 1][kMaxConvRows + 1])(const ConvTile&);
};

template <int V, int R>
constexpr void put_conv_tiles(ConvTiles& tiles) {
  if constexpr (R > 0) {
    tiles.at[V][R] = conv_tile<R, V>;
    put_conv_tiles<V, R - 1>(tiles);
  }
}

template <int R>
constexpr void put_half_tiles(ConvTiles& tiles) {
  if constexpr (R > 0) {
    tiles.at[0][R] = conv_half_tile<R>;
    put_half_tiles<R - 1>(tiles);
  }
}

constexpr ConvTiles all_conv_tiles() {
  ConvTiles tiles{};
  put_half_tiles<kConvRows[0]>(tiles);
  put_conv_tiles<1, kConvRows[1]>(tiles);
  put_conv_tiles<2, kConvRows[2]>(tiles);
  put_conv_tiles<3, kConvRows[3]>(tiles);
  put_conv_tiles<4, kConvRows[4]>(tiles);
  return tiles;
}

constexpr ConvTiles kConvTiles = all_conv_tiles();

// Pixels beside one panel that holds small groups of G inputs and G outputs: each lane has the inputs of its own group before it, spread
// from one vector of sixteen channels. A segment is a tap.
#if defined(__AVX512F__)
constexpr int kSpreadRows[2] = {10, 10};
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kSpreadRows[2] = {3, 6};
#else
constexpr int kSpreadRows[2] = {2, 2};
#endif

template <int G, int c, int R>
FASTGRAPH_INLINE void spread_products(const float* weights, const F16 (&pixels)[R], F16 (&sum)[R][1]) {
  if constexpr (c < G) {
    const F16 right = load_once(weights + c * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) sum[i][0] = fma(spread<G, c>(pixels[i]), right, sum[i][0]);
    spread_products<G, c + 1>(weights, pixels, sum);
  }
}

template <int G, int R>
__attribute__((noinline)) void conv_spread_tile(const ConvTile& t) {
  F16 sum[R][1];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sum[i][0] = broadcast(0.0f);
  const float* weights = t.weights;
  for (int64_t tap = 0; tap < t.segment_count; tap++, weights += G * kLanes) {
    const float* const from = t.pixels + t.segments[tap].offset;
    if constexpr (G == kLanes / 2 && kRegisters == 2) {  // AVX2: a load takes less than its permutation
#pragma GCC unroll 8
      for (int c = 0; c < G; c++) {
        const F16 right = load_once(weights + c * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) {
          const float* const at = from + i * t.pixel_stride + c;
          sum[i][0] = fma(join(broadcast_8(at[0]), broadcast_8(at[G])), right, sum[i][0]);
        }
      }
    } else {
      F16 pixels[R];
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) pixels[i] = load(from + i * t.pixel_stride);
      spread_products<G, 0>(weights, pixels, sum);
    }
  }
  if (t.clamps) conv_epilogue<true, kLanes>(t, sum);
  else conv_epilogue<false, kLanes>(t, sum);
}

struct ConvSpreadTiles {
  void (*at[2][kMaxConvRows + 1])(const ConvTile&);
};

template <int G, int R>
constexpr void put_spread_tiles(ConvSpreadTiles& tiles) {
  if constexpr (R > 0) {
    tiles.at[G / 8][R] = conv_spread_tile<G, R>;
    put_spread_tiles<G, R - 1>(tiles);
  }
}

constexpr ConvSpreadTiles all_spread_tiles() {
  ConvSpreadTiles tiles{};
  put_spread_tiles<4, kSpreadRows[0]>(tiles);
  put_spread_tiles<8, kSpreadRows[1]>(tiles);
  return tiles;
}

constexpr ConvSpreadTiles kConvSpreadTiles = all_spread_tiles();

// Calls body(first channel, lanes) for every vector of a pixel.
template <class Body>
FASTGRAPH_INLINE void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, kLanes);
  if (c < channels) body(c, int(channels - c));
}

template <int C>
FASTGRAPH_INLINE void interleave_channels(const float* from, int64_t channel_stride, int64_t count, float* __restrict to) {
  for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) to[i * C + c] = from[c * channel_stride + i];
}

void conv_interleave(const float* from, int64_t channel_stride, int64_t count, int64_t channels, float* to) {
  if (channels == 3) return interleave_channels<3>(from, channel_stride, count, to);
  if (channels == 4) return interleave_channels<4>(from, channel_stride, count, to);
  for (int64_t begin = 0; begin < count; begin += kLanes)  // so many pixels: the lines that are written stay in L1
    for (int64_t c = 0; c < channels; c++)
      for (int64_t i = begin; i < smaller(count, begin + kLanes); i++) to[i * channels + c] = from[c * channel_stride + i];
}

void conv_activate(const ActivationCall& call, float* out, int64_t stride, int64_t rows, int64_t channels) {
  with_function(call, [&](const auto& function) {
    for (int64_t row = 0; row < rows; row++)
      for_channels(channels, [&](int64_t c, int lanes) {
        float* at = out + row * stride + c;
        if (lanes == kLanes) store(at, function(load(at)));
        else store_first(at, function(load_first(at, lanes)), lanes);
      });
  });
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
