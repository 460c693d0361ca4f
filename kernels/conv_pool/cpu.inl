// The conv_pool kernel, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/tile.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Copies the image rows behind a strip, zero-padded, with the columns of each stride phase side by side:
// window[c][row][phase][j] = padded[c][row][j * stride_w + phase].
void fill_window(const ConvPoolShape& s, const float* image, int64_t first_row, float* window) {
  const ConvPoolGeometry& g = s.g;
  const int64_t row_floats = g.stride_w * s.phase_width;
  for (int64_t c = 0; c < g.in_channels; c++) {
    for (int64_t r = 0; r < s.window_rows; r++, window += row_floats) {
      const int64_t y = first_row + r;
      memset(window, 0, size_t(row_floats) * sizeof(float));
      if (y < 0 || y >= s.height) continue;
      const float* row = image + (c * s.height + y) * s.width;
      if (g.stride_w == 1) {
        memcpy(window + g.padding_w, row, size_t(smaller(s.width, s.phase_width - g.padding_w)) * sizeof(float));
        continue;
      }
      for (int64_t x = 0; x < s.width; x++) {
        const int64_t at = x + g.padding_w, j = at / g.stride_w;
        if (j < s.phase_width) window[(at % g.stride_w) * s.phase_width + j] = row[x];
      }
    }
  }
}

struct Taps {
  const float* window;
  const int64_t* offsets;
  FASTGRAPH_INLINE_MEMBER F16 at(int64_t k, int v) const { return load(window + offsets[k] + v * kLanes); }
};

// One row of vertical maxima that the current convolution row belongs to.
struct Target {
  float* rows;  // [O][ring_width], at column 0
  bool fresh;   // nothing there yet: store instead of taking the maximum
};

// relu(bias + convolution) of one row, all channels, into the maxima of `count` pooled rows.
// After ReLU and with the sign bit cleared (it may stand on a zero or a NaN), the order of the bit patterns is the order
// of the numbers and NaN is the largest: from here on one integer maximum is torch's max, NaN included.
void conv_row(const ConvPoolShape& s, const float* weight, const float* bias, const int64_t* offsets, const float* window,
              const Target* targets, int count) {
  const RowTiles tiles = cut_rows(s.g.out_channels);
  const int64_t vectors = (s.conv_width + kLanes - 1) / kLanes;
  with_largest(tiles, [&](auto largest) {
    constexpr int L = decltype(largest)::value;
    for_vectors<kTileVectors[L]>(0, vectors, [&](auto step, int64_t vector) {
      constexpr int V = decltype(step)::value;
      const int64_t column = vector * kLanes;
      for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t channel) {
        constexpr int R = decltype(tile_rows)::value;
        const float* row_weight = weight + channel * s.taps;
        const Taps taps{window + column, offsets};
        F16 total[R][V];
        tile(row_weight, s.taps, 0, smaller(kSumBlock, s.taps), taps, total);
        for (int i = 0; i < R; i++)
          for (int v = 0; v < V; v++) total[i][v] = add(broadcast(bias[channel + i]), total[i][v]);
        for (int64_t begin = kSumBlock; begin < s.taps; begin += kSumBlock) {
          F16 sum[R][V];
          tile(row_weight, s.taps, begin, smaller(begin + kSumBlock, s.taps), taps, sum);
          for (int i = 0; i < R; i++)
            for (int v = 0; v < V; v++) total[i][v] = add(total[i][v], sum[i][v]);
        }
        for (int i = 0; i < R; i++)
          for (int v = 0; v < V; v++) total[i][v] = absolute(relu(total[i][v]));
        for (int t = 0; t < count; t++) {
          float* row = targets[t].rows + channel * s.ring_width + column;
          for (int i = 0; i < R; i++)
            for (int v = 0; v < V; v++) {
              float* to = row + i * s.ring_width + v * kLanes;
              store(to, targets[t].fresh ? total[i][v] : bits_max(total[i][v], load(to)));
            }
        }
      });
    });
  });
}

// max over t < kernel of row[t], for sixteen neighbouring windows.
FASTGRAPH_INLINE F16 sliding(const float* row, int64_t kernel) {
  F16 best = load(row);
  for (int64_t t = 1; t < kernel; t++) best = bits_max(best, load(row + t));
  return best;
}

// Maximum over each window of one row of vertical maxima: out[j] = max over t < kernel of row[j * stride + t].
FASTGRAPH_INLINE void pool_row_of(const float* row, int64_t kernel, int64_t stride, int64_t width, float* out) {
  for (int64_t j = 0; j < width; j += kLanes) {
    F16 best, odd;
    if (stride == 1) {
      best = sliding(row + j, kernel);
    } else if (stride == 2) {
      deinterleave(sliding(row + 2 * j, kernel), sliding(row + 2 * j + kLanes, kernel), &best, &odd);
    } else {
      float lane[kLanes] = {};
      for (int64_t i = 0; i < smaller(kLanes, width - j); i++)
        for (int64_t t = 0; t < kernel; t++) {
          const float x = row[(j + i) * stride + t];
          lane[i] = x > lane[i] || x != x ? x : lane[i];
        }
      best = load(lane);
    }
    if (j + kLanes <= width) {
      store(out + j, best);
    } else {
      float lane[kLanes];
      store(lane, best);
      memcpy(out + j, lane, size_t(width - j) * sizeof(float));
    }
  }
}

void pool_row(const float* row, int64_t kernel, int64_t stride, int64_t width, float* out) {
  if (stride == 2 && kernel == 3) return pool_row_of(row, 3, 2, width, out);
  if (stride == 2 && kernel == 2) return pool_row_of(row, 2, 2, width, out);
  pool_row_of(row, kernel, stride, width, out);
}

void conv_pool_strip(const ConvPoolShape& s, const float* weight, const float* bias, const int64_t* offsets, const float* image,
                     int64_t first, int64_t count, float* out, int64_t out_channel, int64_t out_row, float* scratch) {
  const ConvPoolGeometry& g = s.g;
  const int64_t ring_rows = g.out_channels * s.ring_width;
  float* ring = scratch;
  float* window = ring + s.open_rows * ring_rows;

  memset(ring, 0, size_t(s.open_rows * ring_rows) * sizeof(float));
  const int64_t strip_begin = first * g.pool_stride_h - g.pool_padding_h;
  fill_window(s, image, strip_begin * g.stride_h - g.padding_h, window);

  const int64_t last = first + count - 1;
  const int64_t strip_end = smaller(last * g.pool_stride_h - g.pool_padding_h + g.pool_kernel_h, s.conv_height);
  Target targets[kMaxOpenRows];
  int64_t open = first;  // first pooled row that is not finished
  for (int64_t r = strip_begin < 0 ? 0 : strip_begin; r < strip_end; r++) {
    int target_count = 0;
    for (int64_t p = open; p <= last && p * g.pool_stride_h - g.pool_padding_h <= r; p++) {
      const int64_t begin = p * g.pool_stride_h - g.pool_padding_h;
      if (r >= begin + g.pool_kernel_h) continue;
      targets[target_count++] = {ring + (p % s.open_rows) * ring_rows + kRingMargin, r == (begin < 0 ? 0 : begin)};
    }
    if (target_count > 0)
      conv_row(s, weight, bias, offsets, window + (r - strip_begin) * g.stride_h * g.stride_w * s.phase_width, targets, target_count);
    for (; open <= last && r + 1 >= smaller(open * g.pool_stride_h - g.pool_padding_h + g.pool_kernel_h, s.conv_height); open++) {
      float* rows = ring + (open % s.open_rows) * ring_rows;
      for (int64_t o = 0; o < g.out_channels; o++) {
        float* row = rows + o * s.ring_width + kRingMargin;
        // What the last vector computed beyond the row is not part of any window.
        memset(row + s.conv_width, 0, size_t((s.conv_width + kLanes - 1) / kLanes * kLanes - s.conv_width) * sizeof(float));
        pool_row(row - g.pool_padding_w, g.pool_kernel_w, g.pool_stride_w, s.out_width,
                 out + o * out_channel + (open - first) * out_row);
      }
    }
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
