// The conv_pool kernel, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/tile.h"
#include "cpu.h"
#include "winograd.h"

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
  const int64_t* offsets;  // in bytes: one instruction less a load
  FASTGRAPH_INLINE_MEMBER const float* at(int64_t k, int v) const {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(window) + offsets[k]) + v * kLanes;
  }
};

// The convolution as it is written, sums in the order of the taps. kFinite: no sum can be NaN or infinite.
template <bool finite>
class DirectColumn {
 public:
  // `window` is at the strip's first convolution row, `row_floats` from one to the next.
  DirectColumn(const ConvPoolCall& call, const float* window, const int64_t* offsets, int64_t row_floats)
      : call_(call), window_(window), offsets_(offsets), row_floats_(row_floats) {}

  static constexpr bool kFinite = finite, kPairs = false;
  static constexpr int kRows = kTileRows;
  static constexpr int vectors(int rows) { return kTileVectors[rows]; }
  static constexpr int64_t kColumns = kLanes;

  // Channels [channel, channel + R), V vectors of columns from `column` on.
  template <int R, int V>
  struct Tile {
    const float *weight, *bias;
    Taps taps;
    int64_t tap_count, row_floats;

    // Convolution row r of the strip.
    FASTGRAPH_INLINE_MEMBER void compute(int64_t r, F16 (&total)[R][V]) const {
      const Taps row{taps.window + r * row_floats, taps.offsets};
      fastgraph::FASTGRAPH_ISA::tile(weight, tap_count, 0, smaller(kSumBlock, tap_count), row, total);
      for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) total[i][v] = add(broadcast(bias[i]), total[i][v]);
      for (int64_t begin = kSumBlock; begin < tap_count; begin += kSumBlock) {
        F16 sum[R][V];
        fastgraph::FASTGRAPH_ISA::tile(weight, tap_count, begin, smaller(begin + kSumBlock, tap_count), row, sum);
        for (int i = 0; i < R; i++)
          for (int v = 0; v < V; v++) total[i][v] = add(total[i][v], sum[i][v]);
      }
    }
  };

  template <int R, int V>
  FASTGRAPH_INLINE_MEMBER Tile<R, V> tile(int64_t channel, int64_t column) const {
    const int64_t taps = call_.shape.taps;
    return {call_.weight + channel * taps, call_.bias + channel, {window_ + column, offsets_}, taps, row_floats_};
  }

 private:
  const ConvPoolCall& call_;
  const float* window_;
  const int64_t* offsets_;
  int64_t row_floats_;
};

// ReLU of the maximum over t < kernel of row[t], for sixteen neighbouring windows: as integers, negative floats and -0 are
// below zero.
FASTGRAPH_INLINE F16 sliding(const float* row, int64_t kernel) {
  F16 best = broadcast(0.0f);
  for (int64_t t = 0; t < kernel; t++) best = bits_max(best, load(row + t));
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

// ReLU of the maximum over each window with stride 2, of a row whose even and odd columns lie apart; a kernel of 0 is any.
template <int known_kernel>
FASTGRAPH_INLINE void pool_row_apart_of(const float* even, int64_t odd, int64_t any_kernel, int64_t any_padding, int64_t width, float* out) {
  const int64_t kernel = known_kernel ? known_kernel : any_kernel, padding = known_kernel ? 0 : any_padding;
  for (int64_t first = 0; first < width; first += kLanes) {
    const int64_t j = width < kLanes ? 0 : smaller(first, width - kLanes);  // the last vector overlaps the one before
    F16 best = broadcast(0.0f);
#pragma GCC unroll 3
    for (int64_t t = 0; t < kernel; t++) best = bits_max(best, load(even + ((t - padding) & 1) * odd + j + ((t - padding) >> 1)));
    if (width >= kLanes) {
      store(out + j, best);
    } else {
      float lane[kLanes];
      store(lane, best);
      memcpy(out, lane, size_t(width) * sizeof(float));
    }
  }
}

void pool_row_apart(const float* even, int64_t odd, const ConvPoolGeometry& g, int64_t width, float* out) {
  if (g.pool_kernel_w == 3 && g.pool_padding_w == 0) return pool_row_apart_of<3>(even, odd, 3, 0, width, out);
  if (g.pool_kernel_w == 2 && g.pool_padding_w == 0) return pool_row_apart_of<2>(even, odd, 2, 0, width, out);
  pool_row_apart_of<0>(even, odd, g.pool_kernel_w, g.pool_padding_w, width, out);
}

// What the last vector computed beyond the convolution's row is not part of any window.
FASTGRAPH_INLINE void clear_beyond(const ConvPoolShape& s, float* row, int64_t odd) {
  const int64_t end = s.maxima_width - kMaximaMargin, even_columns = (s.conv_width + 1) / 2, odd_columns = s.conv_width / 2;
  if (odd == 0) {
    memset(row + s.conv_width, 0, size_t(end - s.conv_width) * sizeof(float));
  } else {
    memset(row + even_columns, 0, size_t(odd - even_columns) * sizeof(float));
    memset(row + odd + odd_columns, 0, size_t(end - odd - odd_columns) * sizeof(float));
  }
}

// The convolution rows behind pooled rows [first, last]: of row p those in [top(p), top(p) + kernel) that exist.
struct PoolRows {
  int64_t first, last, kernel, stride, padding, height, open_rows;
  FASTGRAPH_INLINE_MEMBER int64_t top(int64_t p) const { return p * stride - padding; }
  FASTGRAPH_INLINE_MEMBER int64_t begin(int64_t top) const { return top < 0 ? 0 : top; }
  FASTGRAPH_INLINE_MEMBER int64_t end(int64_t top) const { return smaller(top + kernel, height); }
  FASTGRAPH_INLINE_MEMBER int64_t next(int64_t slot) const { return slot + 1 == open_rows ? 0 : slot + 1; }
};

// Vertical maxima of some channels of a strip, row by row. Even and odd columns lie apart where the pool's stride is 2.
struct Maxima {
  float* rows;            // pooled row p, channel i: rows + p * pitch + i * width
  int64_t pitch, width;
  int64_t odd;            // from the even columns of a row to its odd ones; 0 where they are not apart
};

// R x V vectors to columns [column, column + 16 V) of R rows of maxima.
template <bool pairs, int R, int V>
FASTGRAPH_INLINE void store_maxima(const F16 (&value)[R][V], const Maxima& maxima, float* row, int64_t column) {
  if constexpr (pairs) {
    if (maxima.odd) {
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        store(row + i * maxima.width + column / 2, value[i][0]);
        store(row + i * maxima.width + maxima.odd + column / 2, value[i][1]);
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        F16 low, high;
        interleave(value[i][0], value[i][1], &low, &high);
        store(row + i * maxima.width + column, low);
        store(row + i * maxima.width + column + kLanes, high);
      }
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
      for (int v = 0; v < V; v++) store(row + i * maxima.width + column + v * kLanes, value[i][v]);
  }
}

template <int R, int V, class Body>
FASTGRAPH_INLINE void each(const Body& body) {
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) body(i, v);
}

template <bool finite>
FASTGRAPH_INLINE F16 larger(F16 a, F16 b) { return finite ? max(a, b) : bits_max(a, b); }

// Vertical maxima of R channels from `channel` on, over V vectors of columns, of all pooled rows of a strip.
// Where all sums are finite, ReLU can wait until the pool is done (pool_row). Elsewhere it comes first: after it and with
// the sign bit cleared (it may stand on a zero or a NaN), the order of the bit patterns is the order of the numbers and
// NaN is the largest, so that one integer maximum is torch's max, NaN included.
template <int R, int V, class Column>
FASTGRAPH_INLINE void conv_column(const Column& source, const PoolRows& rows, int64_t channel, int64_t column, const Maxima& maxima, float* to) {
  const auto tile = source.template tile<R, V>(channel, column);
  F16 best[kMaxOpenRows][R][V];
  const int64_t start = rows.top(rows.first), end = rows.end(rows.top(rows.last));
  int64_t open = rows.first, top = start, slot = 0;  // the first pooled row that is not finished, and its place in `best`
  for (int64_t r = rows.begin(start); r < end; r++) {
    if (top > r) continue;  // a row between two windows
    F16 total[R][V];
    tile.compute(r - start, total);
    if constexpr (!Column::kFinite) each<R, V>([&](int i, int v) { total[i][v] = absolute(relu(total[i][v])); });
    int64_t p = open, p_top = top, at = slot;
    for (; p <= rows.last && p_top <= r; p++, p_top += rows.stride, at = rows.next(at)) {
      const bool fresh = r == rows.begin(p_top), done = r + 1 == rows.end(p_top);
      if (fresh && !done) {
        each<R, V>([&](int i, int v) { best[at][i][v] = total[i][v]; });
      } else if (!done) {
        each<R, V>([&](int i, int v) { best[at][i][v] = larger<Column::kFinite>(total[i][v], best[at][i][v]); });
      } else {
        F16 value[R][V];
        each<R, V>([&](int i, int v) { value[i][v] = fresh ? total[i][v] : larger<Column::kFinite>(total[i][v], best[at][i][v]); });
        store_maxima<Column::kPairs>(value, maxima, to + (p - rows.first) * maxima.pitch, column);
      }
    }
    for (; open <= rows.last && r + 1 >= rows.end(top); open++, top += rows.stride) slot = rows.next(slot);
  }
}

// All of a strip, by whatever computes its columns.
template <class Column>
FASTGRAPH_INLINE void strip_of(const ConvPoolCall& call, const Column& source, const PoolRows& rows, float* out, int64_t out_channel, float* scratch) {
  const ConvPoolShape& s = call.shape;
  const int64_t columns = (s.conv_width + Column::kColumns - 1) / Column::kColumns;
  const int64_t count = rows.last - rows.first + 1;
  const bool apart = Column::kPairs && s.g.pool_stride_w == 2;
  const Maxima maxima{scratch + kMaximaMargin, s.group_channels * s.maxima_width, s.maxima_width, apart ? s.maxima_odd : 0};
  // Zeros around the columns, where windows reach beyond them; for 16 k of maxima that is less than a percent.
  if (s.g.pool_padding_w > 0 || s.beyond) memset(scratch, 0, size_t(count * maxima.pitch) * sizeof(float));
  for (int64_t group = 0; group < s.g.out_channels; group += s.group_channels) {
    const int64_t channels = smaller(s.group_channels, s.g.out_channels - group);
    const RowTiles tiles = cut_rows(channels, Column::kRows);
    with_largest<Column::kRows>(tiles, [&](auto largest) {
      constexpr int L = decltype(largest)::value;
      constexpr int most = Column::vectors(L) * kLanes / int(Column::kColumns);
      for_vectors<most>(0, columns, [&](auto step, int64_t first) {
        constexpr int V = decltype(step)::value * int(Column::kColumns) / kLanes;
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t channel) {
          conv_column<decltype(tile_rows)::value, V>(source, rows, group + channel, first * Column::kColumns, maxima, maxima.rows + channel * maxima.width);
        });
      });
    });
    for (int64_t p = 0; p < count; p++)
      for (int64_t i = 0; i < channels; i++) {
        float* row = maxima.rows + p * maxima.pitch + i * maxima.width;
        float* to = out + (group + i) * out_channel + p * s.out_width;
        if (s.beyond) clear_beyond(s, row, maxima.odd);
        if (maxima.odd) pool_row_apart(row, maxima.odd, s.g, s.out_width, to);
        else pool_row(row - s.g.pool_padding_w, s.g.pool_kernel_w, s.g.pool_stride_w, s.out_width, to);
      }
  }
}

// Whether no pixel of these image rows is beyond the bound.
bool bounded(const ConvPoolCall& call, const float* image, int64_t first_row, int64_t rows) {
  const ConvPoolShape& s = call.shape;
  const int64_t begin = first_row < 0 ? 0 : first_row, pixels = (smaller(first_row + rows, s.height) - begin) * s.width;
  if (pixels <= 0) return true;  // padding alone
  F16 largest = broadcast(0.0f);
  float lane[kLanes] = {};
  for (int64_t c = 0; c < s.g.in_channels; c++) {
    const float* p = image + (c * s.height + begin) * s.width;
    int64_t i = 0;
    for (; i + kLanes <= pixels; i += kLanes) largest = bits_max(largest, absolute(load(p + i)));
    for (; i < pixels; i++)
      if (!(__builtin_fabsf(p[i]) <= call.bound)) return false;
  }
  store(lane, largest);
  for (int i = 0; i < kLanes; i++)
    if (!(lane[i] <= call.bound)) return false;
  return true;
}

// Pooled rows and the image rows behind them.
struct Strip {
  PoolRows pool;
  int64_t image_row, rows;
};

FASTGRAPH_INLINE Strip strip_at(const ConvPoolShape& s, int64_t first, int64_t count) {
  const ConvPoolGeometry& g = s.g;
  const PoolRows pool{first, first + count - 1, g.pool_kernel_h, g.pool_stride_h, g.pool_padding_h, s.conv_height, s.open_rows};
  const int64_t rows = ((count - 1) * g.pool_stride_h + g.pool_kernel_h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
  return {pool, pool.top(first) * g.stride_h - g.padding_h, rows};
}

void direct_strip(const ConvPoolCall& call, const float* image, int64_t readable, const Strip& strip, float* out, int64_t out_channel,
                  float* maxima, float* window) {
  const ConvPoolShape& s = call.shape;
  const ConvPoolGeometry& g = s.g;
  const auto [pool, image_row, rows] = strip;
  // The image itself serves as the window where nothing is padded and vectors that end beyond a row stay inside `readable`.
  const int64_t furthest = ((g.in_channels - 1) * s.height + image_row + rows - 1) * s.width + s.phase_width;
  const bool in_place = g.stride_w == 1 && g.padding_w == 0 && image_row >= 0 && image_row + rows <= s.height && furthest <= readable;
  if (!in_place) fill_window(s, image, image_row, window);
  const float* start = in_place ? image + image_row * s.width : window;
  const int64_t* offsets = in_place ? call.image_offsets : call.window_offsets;
  const int64_t row_floats = g.stride_h * (in_place ? s.width : g.stride_w * s.phase_width);
  if (bounded(call, image, image_row, rows)) {
    const DirectColumn<true> column(call, start, offsets, row_floats);
    strip_of(call, column, pool, out, out_channel, maxima);
  } else {
    const DirectColumn<false> column(call, start, offsets, row_floats);
    strip_of(call, column, pool, out, out_channel, maxima);
  }
}

// Whether a pooled row that Winograd computed counts (kReach): `largest` are the largest transformed pixels of the image
// rows behind it, `out` its values, channels `out_channel` apart.
bool is_in_reach(const ConvPoolCall& call, const float* largest, int64_t rows, const float* out, int64_t out_channel) {
  const ConvPoolShape& s = call.shape;
  float pixel = 0;
  for (int64_t r = 0; r < rows; r++) {
    if (!(largest[r] <= call.bound)) return false;
    pixel = largest[r] > pixel ? largest[r] : pixel;
  }
  F16 value = broadcast(0.0f);
  for (int64_t o = 0; o < s.g.out_channels; o++, out += out_channel) {
    float narrow[kLanes] = {};
    if (s.out_width < kLanes) memcpy(narrow, out, size_t(s.out_width) * sizeof(float));
    const float* row = s.out_width < kLanes ? narrow : out;
    for (int64_t i = 0; i < s.out_width; i += kLanes)
      value = max(value, load(row + (s.out_width < kLanes ? 0 : smaller(i, s.out_width - kLanes))));
  }
  return pixel * call.weight_sum <= kReach * fold_max(value);
}

void conv_pool_strip(const ConvPoolCall& call, const float* image, int64_t readable, int64_t first, int64_t count, float* out,
                     int64_t out_channel, float* scratch) {
  const ConvPoolShape& s = call.shape;
  const Strip strip = strip_at(s, first, count);
  float* maxima = scratch;
  float* window = maxima + s.strip_rows * s.group_channels * s.maxima_width;
  float* largest = window + s.window_floats;
  if (!call.winograd || !(call.bound > 0)) return direct_strip(call, image, readable, strip, out, out_channel, maxima, window);

  const WinogradColumn column(call, image, strip.image_row, strip.rows, window, largest);
  strip_of(call, column, strip.pool, out, out_channel, maxima);
  // Row by row: how a row is computed must depend on its own pixels only, not on how strips were cut.
  for (int64_t p = 0; p < count; p++) {
    const Strip row = strip_at(s, first + p, 1);
    float* to = out + p * s.out_width;
    if (!is_in_reach(call, largest + row.image_row - strip.image_row, row.rows, to, out_channel))
      direct_strip(call, image, readable, row, to, out_channel, maxima, window);
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
