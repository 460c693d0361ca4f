// One span of a pool.
#include "../cpu/window.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// The first of equals stays, as in ATen; a NaN that has come stays, one that comes does not enter.
FASTGRAPH_INLINE F16 larger(F16 largest, F16 x) { return max(x, largest); }
FASTGRAPH_INLINE F16 larger_or_nan(F16 largest, F16 x) { return select(is_nan(x), x, larger(largest, x)); }

struct Nothing {};

struct PoolOp {
  // Larger ones read from so many places at once that what is far away comes late (with 14 a 2x2 pool takes 1.4 times as long, Zen 4).
  template <int K>
  static constexpr int kBlock = kTileRows > 4 ? kAnyBlock : 2;
  float* out;
  int64_t out_pixel;
  FASTGRAPH_INLINE_MEMBER Nothing vector(int64_t) const { return {}; }
  template <int K>
  FASTGRAPH_INLINE_MEMBER Nothing tap(Nothing, int64_t) const { return {}; }
  void prepare(int64_t, int) {}
  void finish(int64_t, int, int64_t, int64_t) const {}
};

// With NaN.
struct MaxOfAll {
  FASTGRAPH_INLINE_MEMBER Nothing vector(int64_t) const { return {}; }
  template <int K>
  FASTGRAPH_INLINE_MEMBER Nothing tap(Nothing, int64_t) const { return {}; }
  FASTGRAPH_INLINE_MEMBER F16 start(int64_t) const { return broadcast(-__builtin_inff()); }
  FASTGRAPH_INLINE_MEMBER F16 add(F16 largest, F16 x, Nothing) const { return larger_or_nan(largest, x); }
  FASTGRAPH_INLINE_MEMBER F16 watch(F16 seen, F16) const { return seen; }
};

// Without: the sum of all values is NaN where one of them is. (It is where infinities of both signs are too: no harm.)
struct MaxOp : PoolOp {
  static constexpr bool kWatches = true;
  using Redone = MaxOfAll;
  FASTGRAPH_INLINE_MEMBER F16 start(int64_t) const { return broadcast(-__builtin_inff()); }
  FASTGRAPH_INLINE_MEMBER F16 add(F16 largest, F16 x, Nothing) const { return larger(largest, x); }
  FASTGRAPH_INLINE_MEMBER F16 watch(F16 seen, F16 x) const { return FASTGRAPH_ISA::add(seen, x); }
  FASTGRAPH_INLINE_MEMBER bool is_redone(F16 seen) const { return any(is_nan(seen)); }
  template <int R>
  FASTGRAPH_INLINE_MEMBER void store(F16 (&largest)[R], int64_t pixel, int64_t c, int64_t lanes) const {
    float* to = out + pixel * out_pixel + c;
    const int64_t step = out_pixel;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) store_lanes(to + r * step, largest[r], lanes);
  }
};

// ATen's divisors: of the window with what of the padding it reaches, or without.
struct Divisors {
  const PoolGeometry& g;
  int64_t rows, rows_inside, width;

  Divisors(const PoolGeometry& geometry, const Map& x, int64_t row) : g(geometry), width(x.width) {
    const Window& w = g.window;
    extent(row * w.stride_h - w.pad_top, w.kernel_h, x.height, w.pad_bottom, &rows, &rows_inside);
  }
  static void extent(int64_t from, int64_t kernel, int64_t size, int64_t padding, int64_t* all, int64_t* inside) {
    const int64_t to = smaller(from + kernel, size + padding), begin = from < 0 ? 0 : from;
    *all = to - from;
    *inside = smaller(to, size) - begin;
  }
  // 1 where nothing of the window is inside: ATen's result is 0 then.
  float at(int64_t pixel) const {
    const Window& w = g.window;
    int64_t columns, inside;
    extent(pixel * w.stride_w - w.pad_left, w.kernel_w, width, w.pad_right, &columns, &inside);
    if (rows_inside <= 0 || inside <= 0) return 1;
    if (g.divisor != 0) return float(g.divisor);
    return g.count_include_pad ? float(rows * columns) : float(rows_inside * inside);
  }
};

struct AverageOp : PoolOp {
  static constexpr bool kWatches = false;
  Divisors divisors;
  float divisor[kAnyBlock];  // of the block's pixels
  AverageOp(const PoolOp& op, const Divisors& all) : PoolOp(op), divisors(all) {}
  void prepare(int64_t pixel, int count) {
    for (int i = 0; i < count; i++) divisor[i] = divisors.at(pixel + i);
  }
  FASTGRAPH_INLINE_MEMBER F16 start(int64_t) const { return broadcast(0.0f); }
  FASTGRAPH_INLINE_MEMBER F16 add(F16 sum, F16 x, Nothing) const { return FASTGRAPH_ISA::add(sum, x); }
  FASTGRAPH_INLINE_MEMBER F16 watch(F16 seen, F16) const { return seen; }
  template <int R>
  FASTGRAPH_INLINE_MEMBER void store(F16 (&sums)[R], int64_t pixel, int64_t c, int64_t lanes) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[r] = div(sums[r], broadcast(divisor[r]));
    float* to = out + pixel * out_pixel + c;
    const int64_t step = out_pixel;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) store_lanes(to + r * step, sums[r], lanes);
  }
};

[[maybe_unused]] void pool_span(const PoolGeometry& g, const Map& x, const Map& y, const Span& span) {
  const PoolOp op{y.row(span.image, span.row), y.pixel};
  if (g.kind == PoolKind::max) slide_windows<2, 3, 5>(MaxOp{op}, g.window, x, span);
  else slide_windows<2, 3>(AverageOp(op, Divisors(g, x, span.row)), g.window, x, span);
}

// Pixels of a part of a map.
struct Part {
  const float* first;
  int64_t rows, columns, row_stride, pixel;
};

constexpr int64_t kSumBlock = 16;

// V vectors of channels from c on, added up: runs of at most sixteen pixels of a row one after the other, their sums by halves.
template <int V>
FASTGRAPH_INLINE void sum_part(const Part& part, int64_t c, int64_t lanes, F16 (&sum)[V]) {
  F16 levels[V][48];
  int depth = 0;  // levels that hold a sum: the last one is in `sum` too
  for (int v = 0; v < V; v++) sum[v] = broadcast(0.0f);
  int64_t done = 0;
  for (int64_t row = 0; row < part.rows; row++)
    for (int64_t column = 0; column < part.columns; column += kSumBlock) {
      const float* from = part.first + row * part.row_stride + column * part.pixel + c;
      const int64_t count = smaller(kSumBlock, part.columns - column);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[v] = load_lanes(from + v * kLanes, lanes);
      for (int64_t i = 1; i < count; i++) {
        from += part.pixel;
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[v] = add(sum[v], load_lanes(from + v * kLanes, lanes));
      }
      for (int64_t bit = done++; bit & 1; bit >>= 1) {
        depth--;
        for (int v = 0; v < V; v++) sum[v] = add(levels[v][depth], sum[v]);
      }
      for (int v = 0; v < V; v++) levels[v][depth] = sum[v];
      depth++;
    }
  while (--depth > 0)
    for (int v = 0; v < V; v++) sum[v] = add(levels[v][depth - 1], sum[v]);
}

template <int V>
FASTGRAPH_INLINE void average_part(const Part& part, int64_t c, int64_t lanes, float* out) {
  F16 sum[V];
  sum_part<V>(part, c, lanes, sum);
  const F16 count = broadcast(float(part.rows * part.columns));
  for (int v = 0; v < V; v++) store_lanes(out + c + v * kLanes, div(sum[v], count), lanes);
}

FASTGRAPH_INLINE void max_part(const Part& part, int64_t c, int64_t lanes, float* out) {
  F16 largest = broadcast(-__builtin_inff());
  for (int64_t row = 0; row < part.rows; row++)
    for (int64_t column = 0; column < part.columns; column++)
      largest = larger_or_nan(largest, load_lanes(part.first + row * part.row_stride + column * part.pixel + c, lanes));
  store_lanes(out + c, largest, lanes);
}

FASTGRAPH_INLINE int64_t part_begin(int64_t i, int64_t in, int64_t out) { return i * in / out; }
FASTGRAPH_INLINE int64_t part_end(int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; }

[[maybe_unused]] void adaptive_pool_span(PoolKind kind, const Map& x, const Map& y, const Span& span) {
  const int64_t top = part_begin(span.row, x.height, y.height), bottom = part_end(span.row, x.height, y.height);
  for (int64_t p = span.first; p < span.last; p++) {
    const int64_t left = part_begin(p, x.width, y.width), right = part_end(p, x.width, y.width);
    const Part part{x.row(span.image, top) + left * x.pixel, bottom - top, right - left, x.width * x.pixel, x.pixel};
    float* out = y.row(span.image, span.row) + p * y.pixel;
    int64_t c = span.begin;
    if (kind == PoolKind::average)
      for (; c + 4 * kLanes <= span.end; c += 4 * kLanes) average_part<4>(part, c, kLanes, out);
    if (kind == PoolKind::average && c + 2 * kLanes <= span.end) {
      average_part<2>(part, c, kLanes, out);
      c += 2 * kLanes;
    }
    for (; c < span.end; c += kLanes) {
      const int64_t lanes = smaller(kLanes, span.end - c);
      if (kind == PoolKind::average) average_part<1>(part, c, lanes, out);
      else max_part(part, c, lanes, out);
    }
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
