// The conv_pool kernel, compiled once per ISA.
#include "../cpu/activation.h"
#include "../cpu/gemm/tile.h"
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

  FASTGRAPH_INLINE_MEMBER void prepare(int64_t) {}

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
      const int64_t block = sum_block(tap_count);
      fastgraph::FASTGRAPH_ISA::tile(weight, tap_count, 0, smaller(block, tap_count), row, total);
      for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) total[i][v] = add(broadcast(bias[i]), total[i][v]);
      for (int64_t begin = block; begin < tap_count; begin += block) {
        F16 sum[R][V];
        fastgraph::FASTGRAPH_ISA::tile(weight, tap_count, begin, smaller(begin + block, tap_count), row, sum);
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

// What the last vector computed beyond the convolution's row is not part of any window.
FASTGRAPH_INLINE void clear_beyond(const ConvPoolShape& s, float* row) {
  memset(row + s.conv_width, 0, size_t(s.maxima_width - kMaximaMargin - s.conv_width) * sizeof(float));
}

// The convolution rows behind pooled rows [first, last]: of row p those in [top(p), top(p) + kernel) that exist.
struct PoolRows {
  int64_t first, last, kernel, stride, padding, height, open_rows;
  FASTGRAPH_INLINE_MEMBER int64_t top(int64_t p) const { return p * stride - padding; }
  FASTGRAPH_INLINE_MEMBER int64_t begin(int64_t top) const { return top < 0 ? 0 : top; }
  FASTGRAPH_INLINE_MEMBER int64_t end(int64_t top) const { return smaller(top + kernel, height); }
  FASTGRAPH_INLINE_MEMBER int64_t next(int64_t slot) const { return slot + 1 == open_rows ? 0 : slot + 1; }
};

template <int R, int V, class Body>
FASTGRAPH_INLINE void each(const Body& body) {
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) body(i, v);
}

// Where rows of the convolution go, R channels of V vectors at a time. Maxima keep all columns: vertical maxima go to
// memory, to be pooled along the rows later.
struct Maxima {
  float* rows;  // pooled row p, channel i: rows + p * pitch + i * width
  int64_t pitch, width;

  template <int V>
  static constexpr int kept = V;

  template <bool pairs, int R, int V>
  FASTGRAPH_INLINE_MEMBER void reduce(const F16 (&total)[R][V], F16 (&value)[R][V], int64_t, int64_t) const {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      if constexpr (pairs) {
        interleave(total[i][0], total[i][1], &value[i][0], &value[i][1]);
      } else {
#pragma GCC unroll 12
        for (int v = 0; v < V; v++) value[i][v] = total[i][v];
      }
    }
  }

  template <int R, int V>
  FASTGRAPH_INLINE_MEMBER void take(const F16 (&value)[R][V], int64_t p, int64_t channel, int64_t column) const {
    float* row = rows + p * pitch + channel * width + column;
    each<R, V>([&](int i, int v) { store(row + i * width + v * kLanes, value[i][v]); });
  }
};

// Pooled along the row in registers, from columns in pairs (pools_pairs), to the output. Windows of two are the pairs. Those
// of three begin a column before their pair, with the last column of the pair before it; sixteen pairs further on that is
// the carry. So the first pair of a row completes no window.
template <int kernel>
struct PooledPairs {
  static constexpr int64_t kBefore = kernel - 2;

  // Windows [first_window, first_window + 16), the first of which may be -kBefore. `carry` is [convolution row][channel].
  PooledPairs(const ConvPoolShape& s, float* out, int64_t out_channel, int64_t first_window, float* carry)
      : skips_(first_window < 0), out_(out + (skips_ ? 0 : first_window)), out_channel_(out_channel), out_width_(s.out_width),
        count_(s.out_width - (skips_ ? 0 : first_window)), begin_(2 * first_window - s.g.pool_padding_w + kBefore),
        inside_(begin_ >= 0 && begin_ + 2 * kLanes <= s.conv_width), carry_(carry), carry_row_(s.g.out_channels) {
    for (int i = 0; i < 2 * kLanes; i++) exists_[i % 2][i / 2] = begin_ + i >= 0 && begin_ + i < s.conv_width ? 1.0f : 0.0f;
  }

  FASTGRAPH_INLINE_MEMBER int64_t begin() const { return begin_; }

  template <int V>
  static constexpr int kept = 1;

  template <bool pairs, int R>
  FASTGRAPH_INLINE_MEMBER void reduce(F16 (&total)[R][2], F16 (&value)[R][1], int64_t row, int64_t channel) const {
    float* carry = carry_ + row * carry_row_ + channel;
    static_assert(pairs && (kernel == 2 || kernel == 3), "two or three columns, the pair's first and second ones apart");
    if (!inside_) {  // columns that do not exist are padding: zeros, which ReLU makes the smallest
      const F16 zero = broadcast(0.0f);
      const Mask first = less(zero, load(exists_[0])), second = less(zero, load(exists_[1]));
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        total[i][0] = select(first, total[i][0], zero);
        total[i][1] = select(second, total[i][1], zero);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      value[i][0] = max(total[i][0], total[i][1]);
      if constexpr (kernel == 3) value[i][0] = max(value[i][0], shift_in(carry + i, total[i][1]));
    }
  }

  template <int R>
  FASTGRAPH_INLINE_MEMBER void take(F16 (&value)[R][1], int64_t p, int64_t channel, int64_t) const {
    float* row = out_ + channel * out_channel_ + p * out_width_;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) value[i][0] = bits_max(value[i][0], broadcast(0.0f));  // ReLU of a finite number, -0 included
    if (skips_) {
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) value[i][0] = next_lanes(value[i][0]);
    }
    if (count_ >= kLanes) {  // the windows that follow overwrite the lane that was skipped
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        store(row + i * out_channel_, value[i][0]);
        __builtin_prefetch(row + i * out_channel_ + 2 * kLanes, 1);  // for the windows that follow: rows lie far apart
      }
    } else {
      for (int i = 0; i < R; i++) {
        float lane[kLanes];
        store(lane, value[i][0]);
        memcpy(row + i * out_channel_, lane, size_t(count_) * sizeof(float));
      }
    }
  }

 private:
  bool skips_;  // the first window
  float* out_;
  int64_t out_channel_, out_width_, count_, begin_;
  bool inside_;               // all 32 columns exist
  float exists_[2][kLanes];   // 1 for the pairs' first and second columns that do
  float* carry_;
  int64_t carry_row_;
};

template <bool finite>
FASTGRAPH_INLINE F16 larger(F16 a, F16 b) { return finite ? max(a, b) : bits_max(a, b); }

// Vertical maxima of R channels from `channel` on, over V vectors of columns, of all pooled rows of a strip.
// Where all sums are finite, ReLU can wait until the pool is done (pool_row). Elsewhere it comes first: after it and with
// the sign bit cleared (it may stand on a zero or a NaN), the order of the bit patterns is the order of the numbers and
// NaN is the largest, so that one integer maximum is torch's max, NaN included.
template <int R, int V, class Column, class Sink>
FASTGRAPH_INLINE void conv_column(const Column& source, const PoolRows& rows, int64_t channel, int64_t column, const Sink& sink, int64_t sink_channel) {
  const auto tile = source.template tile<R, V>(channel, column);
  constexpr int W = Sink::template kept<V>;
  F16 best[kMaxOpenRows][R][W];
  const int64_t start = rows.top(rows.first), end = rows.end(rows.top(rows.last));
  int64_t open = rows.first, top = start, slot = 0;  // the first pooled row that is not finished, and its place in `best`
  for (int64_t r = rows.begin(start); r < end; r++) {
    if (top > r) continue;  // a row between two windows
    F16 total[R][V], row[R][W];
    tile.compute(r - start, total);
    sink.template reduce<Column::kPairs>(total, row, r - start, sink_channel);
    if constexpr (!Column::kFinite) each<R, W>([&](int i, int v) { row[i][v] = absolute(relu(row[i][v])); });
    int64_t p = open, p_top = top, at = slot;
    for (; p <= rows.last && p_top <= r; p++, p_top += rows.stride, at = rows.next(at)) {
      const bool fresh = r == rows.begin(p_top), done = r + 1 == rows.end(p_top);
      if (fresh && !done) {
        each<R, W>([&](int i, int v) { best[at][i][v] = row[i][v]; });
      } else if (!done) {
        each<R, W>([&](int i, int v) { best[at][i][v] = larger<Column::kFinite>(row[i][v], best[at][i][v]); });
      } else {
        F16 value[R][W];
        each<R, W>([&](int i, int v) { value[i][v] = fresh ? row[i][v] : larger<Column::kFinite>(row[i][v], best[at][i][v]); });
        sink.take(value, p - rows.first, sink_channel, column);
      }
    }
    for (; open <= rows.last && r + 1 >= rows.end(top); open++, top += rows.stride) slot = rows.next(slot);
  }
}

// The same for windows of two or three rows that advance by two and exist whole: no row is asked where it belongs.
template <int kernel, int R, class Column, class Sink>
FASTGRAPH_INLINE void column_of_pairs(const Column& source, const PoolRows& rows, int64_t channel, const Sink& sink) {
  const auto tile = source.template tile<R, 2>(channel, 0);
  int64_t r = 0;
  const auto next = [&](F16 (&row)[R][1]) __attribute__((always_inline)) {
    F16 total[R][2];
    tile.compute(r, total);
    sink.template reduce<true>(total, row, r++, channel);
  };
  F16 last[R][1], row[R][1], best[R][1];
  if (kernel == 3) next(last);
  for (int64_t p = 0; p <= rows.last - rows.first; p++) {
    if (kernel == 2) next(last);
    next(row);
    each<R, 1>([&](int i, int v) { best[i][v] = max(row[i][v], last[i][v]); });
    if (kernel == 3) {
      next(last);
      each<R, 1>([&](int i, int v) { best[i][v] = max(last[i][v], best[i][v]); });
    }
    sink.take(best, p, channel, 0);
  }
}

// All of a strip, by whatever computes its columns.
template <class Column>
FASTGRAPH_INLINE void strip_of(const ConvPoolCall& call, Column& source, const PoolRows& rows, float* out, int64_t out_channel, float* scratch) {
  const ConvPoolShape& s = call.shape;
  const int64_t columns = (s.conv_width + Column::kColumns - 1) / Column::kColumns;
  const int64_t count = rows.last - rows.first + 1;
  const Maxima maxima{scratch + kMaximaMargin, s.group_channels * s.maxima_width, s.maxima_width};
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
        const int64_t column = first * Column::kColumns;
        source.prepare(column);
        for_row_tiles<L>(tiles, [&](auto tile_rows, int64_t channel) {
          conv_column<decltype(tile_rows)::value, V>(source, rows, group + channel, column, maxima, channel);
        });
      });
    });
    for (int64_t p = 0; p < count; p++)
      for (int64_t i = 0; i < channels; i++) {
        float* row = maxima.rows + p * maxima.pitch + i * maxima.width;
        if (s.beyond) clear_beyond(s, row);
        pool_row(row - s.g.pool_padding_w, s.g.pool_kernel_w, s.g.pool_stride_w, s.out_width, out + (group + i) * out_channel + p * s.out_width);
      }
  }
}

// The same where pools_pairs().
template <int kernel, class Column>
void strip_of_pairs(const ConvPoolCall& call, Column& source, const PoolRows& rows, float* out, int64_t out_channel, float* carry) {
  const ConvPoolShape& s = call.shape;
  const bool whole = rows.kernel == kernel && rows.stride == 2 && rows.top(rows.first) >= 0 && rows.top(rows.last) + kernel <= rows.height;
  for (int64_t group = 0; group < s.g.out_channels; group += s.group_channels) {
    const RowTiles tiles = cut_rows(smaller(s.group_channels, s.g.out_channels - group), Column::kRows);
    with_largest<Column::kRows>(tiles, [&](auto largest) {
      for (int64_t window = -PooledPairs<kernel>::kBefore; window < s.out_width; window += kLanes) {
        const PooledPairs<kernel> pooled(s, out, out_channel, window, carry);
        source.prepare(pooled.begin());
        for_row_tiles<decltype(largest)::value>(tiles, [&](auto tile_rows, int64_t channel) {
          constexpr int R = decltype(tile_rows)::value;
          if (whole) column_of_pairs<kernel, R>(source, rows, group + channel, pooled);
          else conv_column<R, 2>(source, rows, group + channel, 0, pooled, group + channel);
        });
      }
    });
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
    DirectColumn<true> column(call, start, offsets, row_floats);
    strip_of(call, column, pool, out, out_channel, maxima);
  } else {
    DirectColumn<false> column(call, start, offsets, row_floats);
    strip_of(call, column, pool, out, out_channel, maxima);
  }
}

// Whether a pooled row that Winograd computed counts (kReach): `largest` are the largest transformed pixels of the image
// rows behind it, `out` its values, channels `out_channel` apart.
bool is_in_reach(const ConvPoolCall& call, const float* largest, int64_t rows, const float* out, int64_t out_channel) {
  const ConvPoolShape& s = call.shape;
  F16 lanes = broadcast(0.0f);
  for (int64_t r = 0; r < rows; r++) lanes = bits_max(lanes, load(largest + r * kLanes));
  const float pixel = fold_bits_max(lanes);
  if (!(pixel <= call.bound)) return false;
  F16 value = broadcast(0.0f);
  for (int64_t o = 0; o < s.g.out_channels; o++, out += out_channel) {
    float narrow[kLanes] = {};
    if (s.out_width < kLanes) memcpy(narrow, out, size_t(s.out_width) * sizeof(float));
    const float* row = s.out_width < kLanes ? narrow : out;
    for (int64_t i = 0; i < s.out_width; i += kLanes)
      value = max(value, load(row + (s.out_width < kLanes ? 0 : smaller(i, s.out_width - kLanes))));
  }
  return pixel * call.weight_norm <= kReach * fold_max(value);
}

template <class Column>
void winograd_strip(const ConvPoolCall& call, const float* image, int64_t readable, const Strip& strip, float* out, int64_t out_channel,
                    float* maxima, float* window) {
  const ConvPoolShape& s = call.shape;
  float* largest = window + s.window_floats;
  Column column(call, image, strip.image_row, strip.rows, window, largest);
  if (!pools_pairs(s.g)) strip_of(call, column, strip.pool, out, out_channel, maxima);
  else if (s.g.pool_kernel_w == 2) strip_of_pairs<2>(call, column, strip.pool, out, out_channel, largest + strip.rows * kLanes);
  else strip_of_pairs<3>(call, column, strip.pool, out, out_channel, largest + strip.rows * kLanes);
  // Row by row: how a row is computed must depend on its own pixels only, not on how strips were cut.
  for (int64_t p = strip.pool.first; p <= strip.pool.last; p++, out += s.out_width) {
    const Strip row = strip_at(s, p, 1);
    if (!is_in_reach(call, largest + (row.image_row - strip.image_row) * kLanes, row.rows, out, out_channel))
      direct_strip(call, image, readable, row, out, out_channel, maxima, window);
  }
}

void conv_pool_strip(const ConvPoolCall& call, const float* image, int64_t readable, int64_t first, int64_t count, float* out,
                     int64_t out_channel, float* scratch) {
  const ConvPoolShape& s = call.shape;
  const Strip strip = strip_at(s, first, count);
  float* maxima = scratch;
  float* window = maxima + s.maxima_rows * s.group_channels * s.maxima_width;
#if defined(FASTGRAPH_HAS_DOT)
  if (call.winograd_pairs) return winograd_strip<WinogradColumn<Bf16Cells>>(call, image, readable, strip, out, out_channel, maxima, window);
#endif
  if (call.winograd) winograd_strip<WinogradColumn<Fp32Cells>>(call, image, readable, strip, out, out_channel, maxima, window);
  else direct_strip(call, image, readable, strip, out, out_channel, maxima, window);
}

#if defined(FASTGRAPH_HAS_DOT)
constexpr bool kConvPoolDots = true;
#else
constexpr bool kConvPoolDots = false;
#endif

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
