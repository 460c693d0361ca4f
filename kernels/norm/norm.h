// Norms of rows, and of the channels of pixels.
#pragma once

#include "../reduce/sums.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

FASTGRAPH_INLINE double inverse_root(double variance, double eps) { return 1 / __builtin_sqrt((variance < 0 ? 0 : variance) + eps); }

// y = function(x, weight, bias), a row.
template <class Function>
FASTGRAPH_INLINE void map_row(const RowNorm& norm, const float* x, float* y, const Function& function) {
  int64_t i = 0;
  for (; i + kLanes <= norm.size; i += kLanes) store(y + i, function(load(x + i), load(norm.weight + i), load(norm.bias + i)));
  if (i < norm.size) store_first(y + i, function(load_first(x + i, norm.size - i), load(norm.weight + i), load(norm.bias + i)), norm.size - i);
}

// The variance is that of the differences from the rounded mean, whose own mean, nearly zero, makes up for the rounding.
void layer_norm_rows(const RowNorm& norm, const float* x, int64_t ldx, int64_t rows, float* y) {
  const double size = double(norm.size);
  for (int64_t row = 0; row < rows; row++, x += ldx, y += norm.size) {
    const F16 mean = broadcast(float(row_sum(x, norm.size) / size));
    const RowSums<2> moments = row_sums<2>(x, norm.size, [&](F16 v) __attribute__((always_inline)) {
      const F16 d = sub(v, mean);
      return RowSums<2>{{d, mul(d, d)}};
    });
    const double rest = lanes_total(moments.v[0]) / size, variance = lanes_total(moments.v[1]) / size - rest * rest;
    const F16 delta = broadcast(float(rest)), scale = broadcast(float(inverse_root(variance, norm.eps)));
    map_row(norm, x, y, [&](F16 v, F16 weight, F16 bias) __attribute__((always_inline)) {
      return fma(mul(sub(sub(v, mean), delta), scale), weight, bias);
    });
  }
}

void rms_norm_rows(const RowNorm& norm, const float* x, int64_t ldx, int64_t rows, float* y) {
  for (int64_t row = 0; row < rows; row++, x += ldx, y += norm.size) {
    const RowSums<1> squares = row_sums<1>(x, norm.size, [](F16 v) __attribute__((always_inline)) { return RowSums<1>{{mul(v, v)}}; });
    const F16 scale = broadcast(float(inverse_root(lanes_total(squares.v[0]) / double(norm.size), norm.eps)));
    map_row(norm, x, y, [&](F16 v, F16 weight, F16) __attribute__((always_inline)) { return mul(mul(v, scale), weight); });
  }
}

constexpr int64_t kPixelBlock = 64;  // pixels that are added in single precision

// Up to kVectors vectors of channels from `first` on, the last one perhaps not full.
template <int kVectors>
FASTGRAPH_INLINE void moments_of_channels(const Pixels& x, int64_t first, const float* center, const ChannelMoments& moments) {
  const int64_t channels = smaller(kVectors * kLanes, x.channels - first), last = channels - (kVectors - 1) * kLanes;
  F16 centers[kVectors];
  for (int v = 0; v < kVectors; v++) centers[v] = load_first(center + first + v * kLanes, v + 1 < kVectors ? kLanes : last);
  for (int64_t c = first; c < first + channels; c++) moments.sum[c] = moments.squares[c] = 0;
  for (int64_t begin = 0; begin < x.count; begin += kPixelBlock) {
    F16 sum[kVectors], squares[kVectors];
    for (int v = 0; v < kVectors; v++) sum[v] = squares[v] = broadcast(0.0f);
    for (int64_t i = begin; i < smaller(x.count, begin + kPixelBlock); i++) {
      const float* pixel = x.data + i * x.stride + first;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const F16 d = sub(v + 1 < kVectors ? load(pixel + v * kLanes) : load_first(pixel + v * kLanes, last), centers[v]);
        sum[v] = add(sum[v], d);
        squares[v] = fma(d, d, squares[v]);
      }
    }
    float lanes[kVectors * kLanes], square_lanes[kVectors * kLanes];
    for (int v = 0; v < kVectors; v++) {
      store(lanes + v * kLanes, sum[v]);
      store(square_lanes + v * kLanes, squares[v]);
    }
    for (int64_t c = 0; c < channels; c++) {
      moments.sum[first + c] += double(lanes[c]);
      moments.squares[first + c] += double(square_lanes[c]);
    }
  }
}

void channel_moments(const Pixels& x, const float* center, const ChannelMoments& moments) {
  int64_t first = 0;
  for (; first + 4 * kLanes <= x.channels; first += 4 * kLanes) moments_of_channels<4>(x, first, center, moments);
  for (; first < x.channels; first += kLanes) moments_of_channels<1>(x, first, center, moments);
}

void scale_channels(const Pixels& x, const ChannelScale& s, float* y, int64_t y_stride) {
  const auto scaled = [&](F16 v, int64_t c, const auto& read) __attribute__((always_inline)) {
    return fma(sub(sub(v, read(s.center + c)), read(s.delta + c)), read(s.scale + c), read(s.shift + c));
  };
  for (int64_t i = 0; i < x.count; i++) {
    const float* from = x.data + i * x.stride;
    float* to = y + i * y_stride;
    int64_t c = 0;
    for (; c + kLanes <= x.channels; c += kLanes) store(to + c, scaled(load(from + c), c, [](const float* p) __attribute__((always_inline)) { return load(p); }));
    const int64_t rest = x.channels - c;
    if (rest > 0) store_first(to + c, scaled(load_first(from + c, rest), c, [&](const float* p) __attribute__((always_inline)) { return load_first(p, rest); }), rest);
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
