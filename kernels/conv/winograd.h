// Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016), channels last: the transforms
// are sums of whole vectors of channels, 16 multiplications an output channel and a tile of 2 x 2 outputs instead of 36.
//
//     B^T d B      (1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1) d ( ... )^T     of 4 x 4 pixels
//     G g G^T      (1 0 0; .5 .5 .5; .5 -.5 .5; 0 0 1) g ( ... )^T         of 3 x 3 weights
//     A^T m A      (1 1 1 0; 0 1 -1 -1) m ( ... )^T                        of 4 x 4 sums over channels of products
#pragma once

#include "tile.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

void conv_transform(const float* const (&pixels)[16], int64_t channels, float* to, int64_t position_stride) {
  for_channels(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    F16 rows[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      F16 d[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) d[i] = lanes == kLanes ? load(pixels[4 * i + j] + c) : load_first(pixels[4 * i + j] + c, lanes);
      rows[0][j] = sub(d[0], d[2]);
      rows[1][j] = add(d[1], d[2]);
      rows[2][j] = sub(d[2], d[1]);
      rows[3][j] = sub(d[1], d[3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      float* out = to + c + 4 * i * position_stride;
      store(out, sub(rows[i][0], rows[i][2]));
      store(out + position_stride, add(rows[i][1], rows[i][2]));
      store(out + 2 * position_stride, sub(rows[i][2], rows[i][1]));
      store(out + 3 * position_stride, sub(rows[i][1], rows[i][3]));
    }
  });
}

void conv_finish(const ConvWinogradTile& t) {
  const F16 low = broadcast(t.low), high = broadcast(t.high);
  for_channels((t.panels - 1) * kLanes + t.lanes, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const float* m = t.sums + c;
    F16 upper[4], lower[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const F16 a = load(m + j * t.position_stride), d = load(m + (12 + j) * t.position_stride);
      const F16 b = load(m + (4 + j) * t.position_stride), e = load(m + (8 + j) * t.position_stride);
      upper[j] = add(a, add(b, e));
      lower[j] = sub(sub(b, e), d);
    }
    const F16 bias = load(t.bias + c);
    const auto put = [&](int at, F16 total) __attribute__((always_inline)) {
      if (!t.out[at]) return;
      total = add(total, bias);
      if (t.residual[at]) total = add(total, lanes == kLanes ? load(t.residual[at] + c) : load_first(t.residual[at] + c, lanes));
      total = clamp(total, low, high);
      if (lanes == kLanes) store(t.out[at] + c, total);
      else if (lanes == kLanes / 2) store_full<kLanes / 2>(t.out[at] + c, total);
      else store_first(t.out[at] + c, total, lanes);
    };
    put(0, add(upper[0], add(upper[1], upper[2])));
    put(1, sub(sub(upper[1], upper[2]), upper[3]));
    put(2, add(lower[0], add(lower[1], lower[2])));
    put(3, sub(sub(lower[1], lower[2]), lower[3]));
  });
}

void conv_largest(const float* pixels, int64_t pixel_stride, int64_t count, int64_t channels, float* to) {
  for (int64_t i = 0; i < count; i++) {
    F16 largest = broadcast(0.0f);
    for_channels(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const float* at = pixels + i * pixel_stride + c;
      largest = bits_max(largest, absolute(lanes == kLanes ? load(at) : load_first(at, lanes)));
    });
    to[i] = fold_bits_max(largest);
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
