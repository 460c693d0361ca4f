// The conv_pool kernel, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/tile.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

static_assert(kTileRows <= kMaxTileRows, "the ring in a strip's scratch is sized for kMaxTileRows channels");

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
  const int64_t* offsets;  // in bytes: one instruction less a load
  FASTGRAPH_INLINE_MEMBER const float* at(int64_t k, int v) const {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(window) + offsets[k]) + v * kLanes;
  }
};

// One row of vertical maxima that the current convolution row belongs to.
struct Target {
  float* rows;  // [R][ring_width], at column 0
  bool fresh;   // nothing there yet: store instead of taking the maximum
};

// relu(bias + convolution) of one row, R channels, into the maxima of `count` pooled rows.
// After ReLU and with the sign bit cleared (it may stand on a zero or a NaN), the order of the bit patterns is the order
// of the numbers and NaN is the largest: from here on one integer maximum is torch's max, NaN included.
template <int R>
FASTGRAPH_INLINE void conv_row(const ConvPoolShape& s, const float* weight, const float* bias, const Taps& row, const Target* targets, int count) {
  const int64_t vectors = (s.conv_width + kLanes - 1) / kLanes;
  for_vectors<kTileVectors[R]>(0, vectors, [&](auto step, int64_t vector) {
    constexpr int V = decltype(step)::value;
    const int64_t column = vector * kLanes;
    const Taps taps{row.window + column, row.offsets};
    F16 total[R][V];
    tile(weight, s.taps, 0, smaller(kSumBlock, s.taps), taps, total);
    for (int i = 0; i < R; i++)
      for (int v = 0; v < V; v++) total[i][v] = add(broadcast(bias[i]), total[i][v]);
    for (int64_t begin = kSumBlock; begin < s.taps; begin += kSumBlock) {
      F16 sum[R][V];
      tile(weight, s.taps, begin, smaller(begin + kSumBlock, s.taps), taps, sum);
      for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) total[i][v] = add(total[i][v], sum[i][v]);
    }
    for (int i = 0; i < R; i++)
      for (int v = 0; v < V; v++) total[i][v] = absolute(relu(total[i][v]));
    for (int t = 0; t < count; t++) {
      float* to = targets[t].rows + column;
      for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) {
          float* at = to + i * s.ring_width + v * kLanes;
          store(at, targets[t].fresh ? total[i][v] : bits_max(total[i][v], load(at)));
        }
    }
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
  for (int64_t first = 0; first < width; first += kLanes) {
    const int64_t j = width < kLanes ? 0 : smaller(first, width - kLanes);  // the last vector overlaps the one before
    F16 best, odd;
    if (stride == 1) {
      best = sliding(row + j, kernel);
    } else if (stride == 2) {
      deinterleave(sliding(row + 2 * j, kernel), sliding(row + 2 * j + kLanes, kernel), &best, &odd);
    } else {
      float lane[kLanes] = {};
      for (int64_t i = 0; i < smaller(kLanes, width); i++)
        for (int64_t t = 0; t < kernel; t++) {
          const float x = row[(j + i) * stride + t];
          lane[i] = x > lane[i] || x != x ? x : lane[i];
        }
      best = load(lane);
    }
    if (width >= kLanes) {
      store(out + j, best);
    } else {
      float lane[kLanes];
      store(lane, best);
      memcpy(out, lane, size_t(width) * sizeof(float));
    }
  }
}

void pool_row(const float* row, int64_t kernel, int64_t stride, int64_t width, float* out) {
  if (stride == 2 && kernel == 3) return pool_row_of(row, 3, 2, width, out);
  if (stride == 2 && kernel == 2) return pool_row_of(row, 2, 2, width, out);
  pool_row_of(row, kernel, stride, width, out);
}

// Rows [first, first + count) of R channels. `window` is at convolution row `begin`, `row_floats` from one to the next.
template <int R>
FASTGRAPH_INLINE void strip_of(const ConvPoolShape& s, const float* weight, const float* bias, const Taps& window, int64_t row_floats,
                               int64_t begin, int64_t first, int64_t count, float* out, int64_t out_channel, int64_t out_row, float* ring) {
  const ConvPoolGeometry& g = s.g;
  const int64_t last = first + count - 1;
  const int64_t end = smaller(last * g.pool_stride_h - g.pool_padding_h + g.pool_kernel_h, s.conv_height);
  const auto ring_rows = [&](int64_t p) { return ring + (p % s.open_rows) * R * s.ring_width + kRingMargin; };
  memset(ring, 0, size_t(s.open_rows * R * s.ring_width) * sizeof(float));
  Target targets[kMaxOpenRows];
  int64_t open = first;  // first pooled row that is not finished
  for (int64_t r = begin < 0 ? 0 : begin; r < end; r++) {
    int target_count = 0;
    for (int64_t p = open; p <= last && p * g.pool_stride_h - g.pool_padding_h <= r; p++) {
      const int64_t top = p * g.pool_stride_h - g.pool_padding_h;
      if (r < top + g.pool_kernel_h) targets[target_count++] = {ring_rows(p), r == (top < 0 ? 0 : top)};
    }
    if (target_count > 0) conv_row<R>(s, weight, bias, {window.window + (r - begin) * row_floats, window.offsets}, targets, target_count);
    for (; open <= last && r + 1 >= smaller(open * g.pool_stride_h - g.pool_padding_h + g.pool_kernel_h, s.conv_height); open++)
      for (int64_t i = 0; i < R; i++) {
        float* row = ring_rows(open) + i * s.ring_width;
        // What the last vector computed beyond the row is not part of any window.
        memset(row + s.conv_width, 0, size_t((s.conv_width + kLanes - 1) / kLanes * kLanes - s.conv_width) * sizeof(float));
        pool_row(row - g.pool_padding_w, g.pool_kernel_w, g.pool_stride_w, s.out_width, out + i * out_channel + (open - first) * out_row);
      }
  }
}

void conv_pool_strip(const ConvPoolShape& s, const float* weight, const float* bias, const int64_t* offsets, const int64_t* direct_offsets,
                     const float* image, int64_t readable, int64_t first, int64_t count, float* out, int64_t out_channel, int64_t out_row, float* scratch) {
  const ConvPoolGeometry& g = s.g;
  const int64_t begin = first * g.pool_stride_h - g.pool_padding_h, image_row = begin * g.stride_h - g.padding_h;
  const int64_t rows = ((count - 1) * g.pool_stride_h + g.pool_kernel_h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
  // The image itself serves as the window where nothing is padded and vectors that end beyond a row stay inside `readable`.
  const int64_t furthest = ((g.in_channels - 1) * s.height + image_row + rows - 1) * s.width + s.phase_width;
  const bool direct = g.stride_w == 1 && g.padding_w == 0 && image_row >= 0 && image_row + rows <= s.height && furthest <= readable;
  float* window = scratch + s.open_rows * kTileRows * s.ring_width;
  if (!direct) fill_window(s, image, image_row, window);
  const Taps taps = direct ? Taps{image + image_row * s.width, direct_offsets} : Taps{window, offsets};
  const int64_t row_floats = g.stride_h * (direct ? s.width : g.stride_w * s.phase_width);

  // Channels outside: one tile's maxima (2 rows of 6 channels of Net: 25 KB) stay in L1, where those of all would not.
  const RowTiles tiles = cut_rows(g.out_channels);
  with_largest(tiles, [&](auto largest) {
    for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t channel) {
      strip_of<decltype(tile_rows)::value>(s, weight + channel * s.taps, bias + channel, taps, row_floats, begin, first, count,
                                           out + channel * out_channel, out_channel, out_row, scratch);
    });
  });
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
