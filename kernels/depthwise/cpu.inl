// One span of a depthwise convolution.
#include "../cpu/elementwise.h"
#include "../cpu/window.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Taps in a row of the kernel that are kept in registers beside a block's sums. With AVX2 there are few: K = 3 has 68 GFLOP/s with taps in
// them and 40 without, K = 7 47 and 66 (Zen 4).
constexpr int kHeldTaps = kTileRows > 6 ? 8 : 3;

struct DepthwiseOp {
  template <int K>
  static constexpr int kBlock = kTileRows > 6 ? 14 : kTileRows > 4 ? (K <= kHeldTaps ? 4 : 6) : 2;
  static constexpr bool kWatches = false;
  const DepthwiseCall& call;
  const float* residual;  // of the row's first pixel; or null
  int64_t residual_pixel;
  float* out;
  int64_t out_pixel;
  F16 low, high;

  FASTGRAPH_INLINE_MEMBER const float* vector(int64_t c) const { return call.panels + (c + kLanes - 1) / kLanes * call.panel_stride; }
  template <int K>
  FASTGRAPH_INLINE_MEMBER auto tap(const float* panel, int64_t index) const {
    if constexpr (K <= kHeldTaps) return load(panel + index * kLanes);
    else return factor(panel + index * kLanes);
  }
  FASTGRAPH_INLINE_MEMBER F16 start(int64_t c) const { return load(call.bias + c); }
  template <class Tap>
  FASTGRAPH_INLINE_MEMBER F16 add(F16 sum, F16 x, Tap tap) const { return fma(x, tap, sum); }
  FASTGRAPH_INLINE_MEMBER F16 watch(F16 seen, F16) const { return seen; }
  void prepare(int64_t, int) {}
  template <int R>
  FASTGRAPH_INLINE_MEMBER void store(F16 (&sums)[R], int64_t pixel, int64_t c, int64_t lanes) const {
    if (residual) {
      const float* from = residual + pixel * residual_pixel + c;
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) sums[r] = FASTGRAPH_ISA::add(sums[r], load_lanes(from + r * residual_pixel, lanes));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[r] = clamp(sums[r], low, high);
    float* to = out + pixel * out_pixel + c;
    const int64_t step = out_pixel;  // for all the compiler knows, a member might be written to
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) store_lanes(to + r * step, sums[r], lanes);
  }
  void finish(int64_t pixel, int count, int64_t begin, int64_t end) const {
    activate_pixels(call.activations, out + pixel * out_pixel + begin, count, end - begin, out_pixel);
  }
};

[[maybe_unused]] void depthwise_span(const DepthwiseCall& call, const Map& x, const Map* residual, const Map& y, const Span& span) {
  const DepthwiseOp op{call, residual ? residual->row(span.image, span.row) : nullptr, residual ? residual->pixel : 0,
                       y.row(span.image, span.row), y.pixel, broadcast(call.activations.low), broadcast(call.activations.high)};
  slide_windows<3, 5, 7>(op, call.window, x, span);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
