// Windows that slide along a row of a map, channels last: a block of pixels of the result by one vector of channels is held in registers,
// so that a vector of the input is loaded once for all windows of the block that it is in. Taps outside the map are left out.
//
// An operation has
//   Vector vector(c)             what belongs to the vector of channels c ...
//   Tap tap<K>(vector, index)    and to tap `index` of it, row-major, of a kernel K wide or, where K is 0, any
//   int kBlock<K>                pixels of the largest block
//   F16 start(c), add(sum, x, tap)
//   F16 watch(seen, x)           looks at what is loaded: where kWatches, a block with is_redone(seen) is summed again as Redone does
//   prepare(pixel, count)        before the vectors of a block
//   store(sums, pixel, c, lanes)      of a block, from its first pixel on
//   finish(pixel, count, begin, end)  when all channels of a block are stored
// Taps are added in row-major order whatever the block, so that bits do not depend on it.
#pragma once

#include "map.h"
#include "pixels.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

constexpr int kWatchers = kTileRows > 6 ? 4 : 2;  // chains that hide the latency of an addition, as far as there are registers
constexpr int kAnyBlock = 4;                       // pixels of a block of any kernel

// The rows of the input that the windows of one row of the result are in, and one block of these.
struct WindowRow {
  const float* first;  // tap row 0, column 0; only what is inside is read
  int64_t row_stride, pixel, width;
  int64_t tap_begin, tap_end;  // tap rows inside the map
  Window g;

  WindowRow(const Window& window, const Map& x, const Span& span)
      : row_stride(window.dilation_h * x.width * x.pixel), pixel(x.pixel), width(x.width), g(window) {
    const int64_t top = span.row * g.stride_h - g.pad_top;
    tap_begin = top < 0 ? smaller((-top + g.dilation_h - 1) / g.dilation_h, g.kernel_h) : 0;
    tap_end = top < x.height ? smaller((x.height - 1 - top) / g.dilation_h + 1, g.kernel_h) : 0;
    first = x.row(span.image, 0) + (tap_begin < tap_end ? (top + tap_begin * g.dilation_h) * x.width * x.pixel : 0);
  }

  const float* row(int64_t tap) const { return first + (tap - tap_begin) * row_stride; }
  bool is_inside(int64_t column) const { return uint64_t(column) < uint64_t(width); }
};

// Bit j: whether column left + j is inside.
FASTGRAPH_INLINE uint64_t inside_of(const WindowRow& w, int64_t left, int columns) {
  const int64_t begin = left < 0 ? smaller(-left, columns) : 0, end = w.width - left;
  return end <= 0 ? 0 : (end < columns ? (uint64_t(1) << end) - 1 : ~uint64_t(0)) & (~uint64_t(0) << begin);
}

// K taps in a row of the kernel, stride S, R pixels. Prefetching the next vectors of the newest row brings nothing (0.92 to 0.98, Zen 4).
template <int K, int S, int R, class Op>
FASTGRAPH_INLINE F16 fixed_sums(const Op& op, const WindowRow& w, uint64_t inside, int64_t x, int64_t c, F16 (&sums)[R]) {
  constexpr int kColumns = (R - 1) * S + K;
  static_assert(kColumns < 64);
  const int64_t left = x * S - w.g.pad_left;
  F16 seen[kWatchers];
  for (int i = 0; i < kWatchers; i++) seen[i] = broadcast(0.0f);
  const auto vector = op.vector(c);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sums[r] = op.start(c);
  for (int64_t ky = w.tap_begin; ky < w.tap_end; ky++) {
    const float* from = w.row(ky) + left * w.pixel + c;
    decltype(op.template tap<K>(vector, 0)) taps[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) taps[k] = op.template tap<K>(vector, ky * K + k);
    asm("" : "+r"(inside));  // one word to test bits of: GCC would keep every bit in a place of its own
#pragma GCC unroll 32
    for (int j = 0; j < kColumns; j++, from += w.pixel) {
      if (!(inside >> j & 1)) continue;
      const F16 value = keep(load(from));
      seen[j % kWatchers] = op.watch(seen[j % kWatchers], value);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        if (j - r * S >= 0 && j - r * S < K) sums[r] = op.add(sums[r], value, taps[j - r * S]);
    }
  }
  for (int i = 1; i < kWatchers; i++) seen[0] = op.watch(seen[0], seen[i]);
  return seen[0];
}

// Any kernel, and lanes below sixteen.
template <int R, class Op>
FASTGRAPH_INLINE F16 any_sums(const Op& op, const WindowRow& w, int64_t x, int64_t c, int64_t lanes, F16 (&sums)[R]) {
  F16 seen = broadcast(0.0f);
  const auto vector = op.vector(c);
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) sums[r] = op.start(c);
  for (int64_t ky = w.tap_begin; ky < w.tap_end; ky++)
    for (int64_t kx = 0; kx < w.g.kernel_w; kx++) {
      const auto tap = op.template tap<0>(vector, ky * w.g.kernel_w + kx);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const int64_t column = (x + r) * w.g.stride_w - w.g.pad_left + kx * w.g.dilation_w;
        if (!w.is_inside(column)) continue;
        const F16 value = load_lanes(w.row(ky) + column * w.pixel + c, lanes);
        seen = op.watch(seen, value);
        sums[r] = op.add(sums[r], value, tap);
      }
    }
  return seen;
}

template <int K, int S, int R, class Op>
FASTGRAPH_INLINE void block(const Op& op, const WindowRow& w, uint64_t inside, int64_t x, int64_t c, int64_t lanes) {
  F16 sums[R], seen;
  if constexpr (K > 0) seen = fixed_sums<K, S, R>(op, w, inside, x, c, sums);
  else seen = any_sums<R>(op, w, x, c, lanes, sums);
  if constexpr (Op::kWatches)
    if (op.is_redone(seen)) any_sums<R>(typename Op::Redone(), w, x, c, lanes, sums);
  op.store(sums, x, c, lanes);
}

// Blocks of R pixels and, for what is left, smaller ones. The last vector of channels may overlap the one before it.
template <int K, int S, int R, class Op>
[[maybe_unused]] void blocks(Op& op, const WindowRow& w, const Span& span, int64_t x) {
  const int64_t lanes = K > 0 ? kLanes : smaller(kLanes, span.end - span.begin);
  for (; x + R <= span.last; x += R) {
    const uint64_t inside = inside_of(w, x * S - w.g.pad_left, K > 0 ? (R - 1) * S + K : 0);
    op.prepare(x, R);
    for (int64_t c = span.begin; c < span.end; c += kLanes) block<K, S, R>(op, w, inside, x, smaller(c, span.end - lanes), lanes);
    op.finish(x, R, span.begin, span.end);
  }
  if constexpr (R > 1) blocks<K, S, (R + 1) / 2>(op, w, span, x);
}

template <int K, class Op>
[[maybe_unused]] bool blocks_of_width(Op& op, const WindowRow& w, const Span& span) {
  const bool is_fixed = w.g.kernel_w == K && w.g.dilation_w == 1 && w.g.stride_w <= 2 && span.end - span.begin >= kLanes;
  if (!is_fixed) return false;
  if (w.g.stride_w == 1) blocks<K, 1, Op::template kBlock<K>>(op, w, span, span.first);
  else blocks<K, 2, Op::template kBlock<K>>(op, w, span, span.first);
  return true;
}

// All pixels of a span; kernels Ks wide, with stride 1 or 2, are the fast ones.
template <int... Ks, class Op>
[[maybe_unused]] void slide_windows(Op op, const Window& window, const Map& x, const Span& span) {
  const WindowRow w(window, x, span);
  if (!(blocks_of_width<Ks>(op, w, span) || ...)) blocks<0, 0, kAnyBlock>(op, w, span, span.first);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
