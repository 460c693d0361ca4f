// Winograd's method over strips of rows of tiles: a strip is transformed once, then for each unit of panels position after position is
// multiplied for all of its tiles, whose weights stay in the caches meanwhile, and the sums are transformed back.
//
// An output is of its own nine pixels alone, as the direct sum is, but each of them meets sums of weights, whatever its own weight is: what
// should have cancelled stays as an error in proportion to the pixel, and infinities become NaN. A tile in which a pixel is out of proportion
// to another one is summed directly. Which tiles those are depends on their own pixels alone.
#include <string.h>

#include <algorithm>
#include <cmath>

#include "../cpu/arena.h"
#include "products.h"

namespace fastgraph {
namespace {

// How many times another pixel a tile's largest may be, each by its largest channel. Zeros do not count: ordinary maps are full of them.
constexpr float kReach = 64;

// Channels of a block of sums. Errors against float64 over eager's, root mean square, of 64 @ 56, 128 @ 28, 256 @ 14 and 512 @ 7 (Zen 4):
// blocks of 272 1.3, 1.6, 2.0, 1.8; of 64 1.3, 1.2, 1.1, 1.0 for 2 % of the time; of 32 1.0, 1.0, 0.9, 0.8 for 10 %.
constexpr int64_t kSumBlock = 64;

// Outputs of a tile, and pixels.
constexpr int64_t kSide = 2, kPixels = 4, kPositions = 16;

constexpr int64_t round_up(int64_t floats) { return (floats + kConvLanes - 1) / kConvLanes * kConvLanes; }

class Winograd {
 public:
  Winograd(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, int threads)
      : layer_(layer), g_(layer.geometry), epilogue_(epilogue), call_(call), tile_rows_((call.out_height + 1) / kSide),
        tile_columns_((call.out_width + 1) / kSide), depth_(round_up(g_.in_channels)), channels_({{0, g_.in_channels}}, kSumBlock), taps_(patch_taps()),
        division_(divide(threads)), units_(layer, rows() * tile_columns_ / division_.strips, division_.parts),
        direct_{layer, epilogue, units_, taps_, 0, call.y_stride, call.residual_stride} {}

  void run(Lease& lease) const {
    division_.run(rows(), units_.count(), lease, [&](int64_t first, int64_t last, int64_t first_unit, int64_t last_unit) {
      const int64_t positions = strip_floats(first, last);
      float* const scratch = thread_arena(positions + sums_floats(first, last));
      const Strip strip = lay_out(first, last, scratch);
      transform(strip, scratch + positions);
      if (memchr(strip.is_direct, 0, size_t(strip.tiles))) multiply(strip, first_unit, last_unit, scratch + positions);
      if (const std::vector<PixelRun> runs = patches(strip); !runs.empty()) direct_.run(runs, first_unit, last_unit, scratch + positions);
    });
  }

 private:
  // Rows of tiles [first, last) over all images, transformed.
  struct Strip {
    int64_t first, last, tiles, stride;  // floats from one position to the next: an odd number of cache lines, or they would meet
    float* positions;              // [16][tiles][depth]
    uint8_t* is_direct;            // [tiles]
  };

  struct Tile {
    int64_t image, row, column;  // of its first output
  };

  int64_t rows() const { return call_.batch * tile_rows_; }
  static int64_t odd_lines(int64_t floats) { return ((floats + kConvLanes - 1) / kConvLanes | 1) * kConvLanes; }

  int64_t position_floats(int64_t tiles) const { return odd_lines(tiles * depth_); }
  int64_t strip_floats(int64_t first, int64_t last) const {
    const int64_t tiles = (last - first) * tile_columns_;
    return kPositions * position_floats(tiles) + round_up((tiles + 3) / 4);
  }
  int64_t sum_stride(int64_t tiles) const { return odd_lines(tiles * units_.widest() * kConvLanes); }
  int64_t sums_floats(int64_t first, int64_t last) const {
    return kPositions * sum_stride((last - first) * tile_columns_) + kPixels * columns();
  }
  int64_t columns() const { return kSide * tile_columns_ + kPixels - kSide; }  // of pixels, with those outside

  ConvDivision divide(int threads) const {
    const int64_t tile = kPositions * (depth_ + 2 * kConvLanes);
    return ConvDivision::of(rows(), tile_columns_, tile_columns_ * tile, kPositions * g_.in_channels * g_.out_channels,
                            kPositions * rows() * tile_columns_ * g_.in_channels, g_.group_panels(), threads);
  }

  Strip lay_out(int64_t first, int64_t last, float* memory) const {
    const int64_t tiles = (last - first) * tile_columns_, stride = position_floats(tiles);
    return {first, last, tiles, stride, memory, reinterpret_cast<uint8_t*>(memory + kPositions * stride)};
  }

  Tile tile_of(int64_t row, int64_t column) const { return {row / tile_rows_, row % tile_rows_ * kSide, column * kSide}; }
  Tile tile_of(const Strip& strip, int64_t tile) const { return tile_of(strip.first + tile / tile_columns_, tile % tile_columns_); }

  const float* pixel_row(int64_t image, int64_t y) const {
    return y < 0 || y >= call_.height ? nullptr : call_.x + image * call_.image_stride + y * call_.row_stride;
  }
  // Of a tile or those beside it; zeros outside of the map.
  const float* pixel_at(const Tile& tile, int64_t row, int64_t column) const {
    const float* const from = pixel_row(tile.image, tile.row - g_.padding_top + row);
    const int64_t x = tile.column - g_.padding_left + column;
    return from && x >= 0 && x < call_.width ? from + x * call_.pixel_stride : layer_.zeros;
  }

  // `largest` has room for four rows of pixels.
  void transform(const Strip& strip, float* largest) const {
    for (int64_t row = strip.first; row < strip.last; row++) {
      const bool continues = row > strip.first && row % tile_rows_ != 0;
      find_largest(tile_of(row, 0), continues, largest);
      for (int64_t column = 0; column < tile_columns_; column++) {
        const Tile tile = tile_of(row, column);
        const int64_t at = (row - strip.first) * tile_columns_ + column;
        const float* pixels[kPositions];
        for (int64_t i = 0; i < kPositions; i++) pixels[i] = pixel_at(tile, i / kPixels, i % kPixels);
        layer_.kernels->transform(pixels, g_.in_channels, strip.positions + at * depth_, strip.stride);
        strip.is_direct[at] = is_out_of_proportion(largest + tile.column);
      }
    }
  }

  // Of the pixels of a row of tiles, zeros outside; the first rows are the last ones of the row before, if it continues that.
  void find_largest(const Tile& tile, bool continues, float* to) const {
    const int64_t known = continues ? kPixels - kSide : 0, begin = std::min(g_.padding_left, columns());
    const int64_t count = std::min(call_.width, columns() - begin);
    if (continues) memcpy(to, to + kSide * columns(), size_t(known * columns()) * sizeof(float));
    for (int64_t i = known; i < kPixels; i++) {
      const float* const row = pixel_row(tile.image, tile.row - g_.padding_top + i);
      std::fill(to + i * columns(), to + (i + 1) * columns(), 0.0f);
      if (row) layer_.kernels->largest(row, call_.pixel_stride, count, g_.in_channels, to + i * columns() + begin);
    }
  }

  // `largest`: of the tile's first pixel.
  bool is_out_of_proportion(const float* largest) const {
    float most = 0, least = HUGE_VALF;
    for (int64_t i = 0; i < kPixels; i++)
      for (int64_t j = 0; j < kPixels; j++) {
        const float pixel = largest[i * columns() + j];
        most = larger(most, pixel);
        if (pixel < least && pixel > 0) least = pixel;
      }
    return !(most <= layer_.largest_pixel) || (most > 0 && most > kReach * least);
  }

  // NaN where either is.
  static float larger(float a, float b) { return a > b || a != a ? a : b; }

  void multiply(const Strip& strip, int64_t first, int64_t last, float* sums) const {
    for (int64_t u = first; u < last; u++) {
      const ConvUnit unit = units_[u];
      multiply_unit(strip, unit, weights(u + 1 < last ? units_[u + 1] : unit), sums);
      finish(strip, unit, sums);
    }
  }

  const float* weights(const ConvUnit& unit) const { return layer_.winograd + unit.panel * kPositions * g_.in_channels * kConvLanes; }

  void multiply_unit(const Strip& strip, const ConvUnit& unit, const float* next, float* sums) const {
    const int64_t width = unit.panels * kConvLanes, most = layer_.most_rows(unit.tile_panels()), position = g_.in_channels * kConvLanes;
    const float* const panels = weights(unit);
    ConvTile tile{};
    tile.pixel_stride = depth_;
    tile.panel_stride = kPositions * position;
    tile.base_stride = tile.out_stride = width;
    tile.lanes = unit.sum_lanes();
    for (int64_t q = 0; q < kPositions; q++) {
      for (size_t b = 0; b < channels_.blocks.size(); b++) {
        const ConvBlocks::Block& block = channels_.blocks[b];
        const bool is_last = b + 1 == channels_.blocks.size();
        const float* following = is_last ? panels + (q + 1) * position : panels + q * position + channels_.blocks[b + 1].k * kConvLanes;
        if (is_last && q + 1 == kPositions) following = next;
        int64_t tiles = 0;
        tile.segments = channels_.segments.data() + block.first;
        tile.segment_count = block.count;
        tile.weights = panels + q * position + block.k * kConvLanes;
        for_tiles(strip.tiles, most, [&](int64_t row, int64_t rows) {
          tile.pixels = strip.positions + q * strip.stride + row * depth_;
          tile.ahead = tiles < unit.panels ? following + tiles++ * tile.panel_stride : tile.weights;
          tile.out = sums + q * sum_stride(strip.tiles) + row * width;
          tile.base = b > 0 ? tile.out : nullptr;
          layer_.tile(unit.tile_panels(), rows, tile);
        });
      }
    }
  }

  void finish(const Strip& strip, const ConvUnit& unit, const float* sums) const {
    const int64_t channel = unit.panel * kConvLanes, width = unit.panels * kConvLanes, channels = std::min(width, g_.out_channels - channel);
    ConvWinogradTile to{};
    to.position_stride = sum_stride(strip.tiles);
    to.bias = layer_.bias + channel;
    to.low = epilogue_.low;
    to.high = epilogue_.high;
    to.panels = unit.panels;
    to.lanes = channels - (width - kConvLanes);
    for (int64_t t = 0; t < strip.tiles; t++) {
      if (strip.is_direct[t]) continue;
      const Tile tile = tile_of(strip, t);
      to.sums = sums + t * width;
      for (int64_t i = 0; i < kSide * kSide; i++) {
        const int64_t row = tile.row + i / kSide, column = tile.column + i % kSide;
        const int64_t pixel = (tile.image * call_.out_height + row) * call_.out_width + column;
        const bool exists = row < call_.out_height && column < call_.out_width;
        to.out[i] = exists ? call_.y + pixel * call_.y_stride + channel : nullptr;
        to.residual[i] = exists && call_.residual ? call_.residual + pixel * call_.residual_stride + channel : nullptr;
      }
      layer_.kernels->finish(to);
      for (const ActivationCall& call : epilogue_.activations)
        for (float* out : to.out)
          if (out) layer_.kernels->activate(call, out, 0, 1, channels);
    }
  }

  // Pixels behind tiles beside each other as a map of their own, [columns][4][channels], whose taps lie alike however many there are.
  std::vector<ConvSegment> patch_taps() const {
    std::vector<ConvSegment> taps;
    for (int64_t y = 0; y < 3; y++)
      for (int64_t x = 0; x < 3; x++) taps.push_back({(x * kPixels + y) * g_.in_channels, g_.in_channels});
    return taps;
  }

  // The outputs of the tiles that are summed directly; their pixels are copied to where the positions were.
  std::vector<PixelRun> patches(const Strip& strip) const {
    std::vector<PixelRun> runs;
    float* to = strip.positions;
    for (int64_t t = 0; t < strip.tiles;) {
      int64_t end = t;
      while (end < strip.tiles && strip.is_direct[end] && end / tile_columns_ == t / tile_columns_) end++;
      if (end > t) to = patch(tile_of(strip, t), end - t, to, runs);
      t = std::max(end, t + 1);
    }
    return runs;
  }

  // `count` tiles from one on; returns the end of what was copied.
  float* patch(const Tile& tile, int64_t count, float* to, std::vector<PixelRun>& runs) const {
    const int64_t C = g_.in_channels;
    for (int64_t i = 0; i < kSide && tile.row + i < call_.out_height; i++) {
      const int64_t pixel = (tile.image * call_.out_height + tile.row + i) * call_.out_width + tile.column;
      runs.push_back({to + i * C, kPixels * C, std::min(kSide * count, call_.out_width - tile.column), call_.y + pixel * call_.y_stride,
                      call_.residual ? call_.residual + pixel * call_.residual_stride : nullptr});
    }
    for (int64_t column = 0; column < kSide * count + kPixels - kSide; column++)
      for (int64_t row = 0; row < kPixels; row++, to += C) memcpy(to, pixel_at(tile, row, column), size_t(C) * sizeof(float));
    return to;
  }

  const ConvLayer& layer_;
  const ConvGeometry& g_;
  const ConvEpilogue& epilogue_;
  const ConvCall& call_;
  int64_t tile_rows_, tile_columns_, depth_;
  ConvBlocks channels_, taps_;
  ConvDivision division_;
  ConvUnits units_;
  ConvSums direct_;
};

}  // namespace

bool takes_winograd(const ConvLayer& layer, const ConvCall& call) {
  const int64_t tiles = (call.out_height + 1) / kSide * ((call.out_width + 1) / kSide);
  return layer.winograd && 16 * tiles * 5 < 9 * call.out_height * call.out_width * 4;
}

void run_winograd(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, Lease& lease) {
  if (call.channel_stride == 1) return Winograd(layer, epilogue, call, lease.threads()).run(lease);
  const int64_t C = layer.geometry.in_channels, row_floats = call.width * C, rows = call.batch * call.height;
  const AlignedFloats pixels = aligned_floats(rows * row_floats);
  lease.run(rows, [&](int64_t row) {
    const float* const from = call.x + row / call.height * call.image_stride + row % call.height * call.row_stride;
    copy_pixels(layer, call, from, call.width, pixels.get() + row * row_floats);
  });
  ConvCall last = call;
  last.x = pixels.get();
  last.image_stride = call.height * row_floats;
  last.row_stride = row_floats;
  last.pixel_stride = C;
  last.channel_stride = 1;
  Winograd(layer, epilogue, last, lease.threads()).run(lease);
}

}  // namespace fastgraph
