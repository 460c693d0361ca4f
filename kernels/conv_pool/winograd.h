// Winograd's F(2, 3) along the row: two neighbouring outputs of a convolution three wide from four
// multiplications instead of six (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2016; one-dimensional here, summed over channels and kernel rows).
//
// For the outputs at columns 2j and 2j + 1, pixels d0 .. d3 from column 2j on and weights w0 .. w2:
//
//     m1 = (d1 + d2) (w0 + w1 + w2) / 2      even = m1 + m2 + d0' w0       d0' = d0 - d2
//     m2 = (d2 - d1) (w0 - w1 + w2) / 2      odd  = m1 - m2 - d3' w2       d3' = d1 - d3
//
// Sums over k = (kernel row, channel): m1 from the bias and m2 from zero, upwards; then even = m1 + m2 and
// odd = m1 - m2 take up their last products, upwards: one fixed order. Per output 2 multiply-adds for every 3
// of the direct sum. Largest error of Net's convolution against float64, relative to its largest value: 2.3e-7 (eager 2.2e-7).
//
// A pixel works on both outputs, even where its weights are zero or its own output is clipped by ReLU; what should have
// cancelled then stays as an error in proportion to the pixel, and infinities and NaN spread. So a pooled row counts only
// where its pixels are in proportion to its largest value (kReach); the others are computed directly.
#pragma once

#include "../cpu/activation.h"
#include "../cpu/gemm/tile.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {

// Channels of the largest tile, with two accumulators each. AVX2: 3 use 12 + 2 + 1 of 16 registers.
#if defined(__AVX512F__)
constexpr int kPairRows = 8;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kPairRows = 3;
#else
constexpr int kPairRows = 2;
#endif

// How many times its largest value the bound of a pooled row's pixels (twice the largest) times the norm of the weights may
// be: 2 for random pixels and weights, whatever the number of channels, since such sums grow with the norm. Largest
// errors of such rows, outliers among their pixels, in ulp of their largest value: 2.6 with 3 channels, 4.9 with 16 and 8.4
// with 40 (eager 2.4, 4.5, 4.5).
constexpr float kReach = 4;

constexpr int64_t kCell = kWinogradCell;
static_assert(kCell == 4 * kLanes, "four vectors");

// total[i][h] += sum over k of w[k][i][h] * cell[k][h] for the two halves h, by `product`.
template <int R, class Product>
FASTGRAPH_INLINE void add_products(const float* w, int64_t weight_stride, const float* cell, int64_t step, int64_t count, F16 (&total)[R][2],
                                   const Product& product) {
  for (int64_t k = 0; k < count; k++, w += weight_stride, cell += step) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const F16 x = R == 2 ? load_once(cell + half * kLanes) : load(cell + half * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) total[i][half] = product(w + 2 * i + half, x, total[i][half]);
    }
  }
}

// Transformed pixels of one channel of one row, [m1, m2, d0', d3'][16], as they are.
class Fp32Cells {
 public:
  static FASTGRAPH_INLINE_MEMBER const float* weight(const ConvPoolCall& call) { return call.winograd; }
  static FASTGRAPH_INLINE_MEMBER int64_t steps(int64_t taps) { return taps; }

  FASTGRAPH_INLINE_MEMBER void put(const F16 (&phases)[4], float* cell) {
    for (int phase = 0; phase < 4; phase++) store(cell + phase * kLanes, phases[phase]);
  }

  template <int R>
  static FASTGRAPH_INLINE_MEMBER void accumulate(const float* w, int64_t weight_stride, const float* cell, int64_t taps, F16 (&total)[R][2]) {
    add_products(w, weight_stride, cell, kCell, taps, total, [](const float* weight, F16 x, F16 sum) { return fma(broadcast(*weight), x, sum); });
  }
};

#if defined(FASTGRAPH_HAS_DOT)
// Rounded to bf16, each in a pair with the one that follows it, of the next channel or the next row. Of an odd number of
// taps the last pair repeats a tap, with weight zero.
class Bf16Cells {
 public:
  static FASTGRAPH_INLINE_MEMBER const float* weight(const ConvPoolCall& call) { return reinterpret_cast<const float*>(call.winograd_pairs); }
  static FASTGRAPH_INLINE_MEMBER int64_t steps(int64_t taps) { return (taps + 1) / 2; }

  // The cell before becomes a pair; the strip's last one never does.
  FASTGRAPH_INLINE_MEMBER void put(const F16 (&phases)[4], float* cell) {
    for (int phase = 0; phase < 4; phase++) {
      if (has_last_) store(cell - kCell + phase * kLanes, pair_up(last_[phase], phases[phase]));
      last_[phase] = phases[phase];
    }
    has_last_ = true;
  }

  template <int R>
  static FASTGRAPH_INLINE_MEMBER void accumulate(const float* w, int64_t weight_stride, const float* cell, int64_t taps, F16 (&total)[R][2]) {
    const auto product = [](const float* weight, F16 x, F16 sum) { return dot_broadcast(weight, x, sum); };
    const int64_t pairs = taps / 2;
    add_products(w, weight_stride, cell, 2 * kCell, pairs, total, product);
    if (taps % 2) add_products(w + pairs * weight_stride, weight_stride, cell + (taps - 2) * kCell, kCell, 1, total, product);
  }

 private:
  F16 last_[4];
  bool has_last_ = false;
};
#endif

// 32 columns of a strip at a time, in pairs of even and odd ones. The image rows behind them are transformed to
// cells[row][channel], which stay in L1 for all output channels.
template <class Cells>
class WinogradColumn {
 public:
  // `first_row` is the image row behind the strip's first convolution row. `largest` takes, for each of `rows` rows, sixteen
  // bounds of transformed pixels, the largest of which bounds all of the row's; NaN is the largest of all.
  WinogradColumn(const ConvPoolCall& call, const float* image, int64_t first_row, int64_t rows, float* cells, float* largest)
      : call_(call), image_(image), first_row_(first_row), rows_(rows), cells_(cells), largest_(largest) {
    memset(largest, 0, size_t(rows * kLanes) * sizeof(float));
  }

  // Transforms the pixels behind convolution columns [column, column + 32), zeros where there are none.
  void prepare(int64_t column) {
    const ConvPoolShape& s = call_.shape;
    const int64_t x = column - s.g.padding_w, begin = x < 0 ? -x : 0, end = smaller(kPixels, s.width - x);
    const bool inside = begin == 0 && end == kPixels, first = ahead_ == 0;  // nobody has asked for the first columns
    for (int64_t r = 0; first && r < kRowsAhead; r++) prefetch_row(r);
    float* cell = cells_;
    Cells cells;
    float padded[kPixels] = {}, zeros[kPixels] = {};
    for (int64_t r = 0; r < rows_; r++) {
      const int64_t y = first_row_ + r;
      const bool exists = y >= 0 && y < s.height;
      if (first) prefetch_row(r + kRowsAhead);
      F16 largest = load(largest_ + r * kLanes);
      for (int64_t c = 0; c < s.g.in_channels; c++, cell += kCell) {
        F16 phases[4];
        const float* row = image_ + (c * s.height + y) * s.width + x;
        if (exists && !inside && begin < end) memcpy(padded + begin, row + begin, size_t(end - begin) * sizeof(float));
        transform(!exists ? zeros : inside ? row : padded, phases, largest);
        cells.put(phases, cell);
      }
      store(largest_ + r * kLanes, largest);
    }
    ahead_ = x + kPixels;
    for (int64_t r = 0; r < s.g.kernel_h - 1; r++) prefetch_row(r);
  }

  static constexpr bool kFinite = true, kPairs = true;
  static constexpr int kRows = kPairRows;
  static constexpr int vectors(int) { return 2; }
  static constexpr int64_t kColumns = 2 * kLanes;

  // Channels [channel, channel + R) of the columns that were prepared.
  template <int R, int V>
  struct Tile {
    const float *weight, *bias, *cells;
    int64_t taps, weight_stride, row_floats;
    const WinogradColumn* ahead;  // null but for the last channels: pixels asked for earlier would not stay in L1

    // Convolution row r of the strip: even columns in total[i][0], odd ones in total[i][1].
    FASTGRAPH_INLINE_MEMBER void compute(int64_t r, F16 (&total)[R][2]) const {
      const float* cell = cells + r * row_floats;
      if (ahead) ahead->prefetch_row(r + ahead->call_.shape.g.kernel_h - 1);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        total[i][0] = broadcast(bias[i]);
        total[i][1] = broadcast(0.0f);
      }
      Cells::accumulate(weight, weight_stride, cell, taps, total);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const F16 m1 = total[i][0], m2 = total[i][1];
        total[i][0] = add(m1, m2);
        total[i][1] = sub(m1, m2);
      }
      Cells::accumulate(weight + Cells::steps(taps) * weight_stride, weight_stride, cell + 2 * kLanes, taps, total);
    }
  };

  template <int R, int V>
  FASTGRAPH_INLINE_MEMBER Tile<R, V> tile(int64_t channel, int64_t) const {
    const ConvPoolGeometry& g = call_.shape.g;
    return {Cells::weight(call_) + 2 * channel, call_.bias + channel, cells_, g.in_channels * g.kernel_h, 2 * g.out_channels,
            g.stride_h * g.in_channels * kCell, channel + R == g.out_channels ? this : nullptr};
  }

 private:
  static constexpr int64_t kPixels = kColumns + 2;

  // `largest` takes twice the largest pixel: no transformed one is larger.
  static FASTGRAPH_INLINE_MEMBER void transform(const float* d, F16 (&phases)[4], F16& largest) {
    F16 d0, d1, d2, d3;
    load_pairs(d, &d0, &d1);
    load_pairs(d + 2, &d2, &d3);
    phases[0] = add(d1, d2);
    phases[1] = sub(d2, d1);
    phases[2] = sub(d0, d2);
    phases[3] = sub(d1, d3);
    const F16 pixel = bits_max(bits_max(absolute(d0), absolute(d1)), bits_max(absolute(d2), absolute(d3)));
    largest = bits_max(largest, add(pixel, pixel));
  }

  static constexpr int64_t kRowsAhead = 4;

  // Asks for row r of the pixels behind the columns that follow: rows lie in pages of their own, where no prefetcher sees
  // them coming, and too many at once wait for each other.
  FASTGRAPH_INLINE_MEMBER void prefetch_row(int64_t r) const {
    const ConvPoolShape& s = call_.shape;
    const float* row = image_ + (first_row_ + r) * s.width + ahead_;
    for (int64_t c = 0; c < s.g.in_channels; c++, row += s.height * s.width) {
      __builtin_prefetch(row);
      __builtin_prefetch(row + kLanes);
      __builtin_prefetch(row + kColumns - 1);
    }
  }

  const ConvPoolCall& call_;
  const float* image_;
  int64_t first_row_, rows_, ahead_ = 0;
  float *cells_, *largest_;
};

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
