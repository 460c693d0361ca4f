#include "products.h"

#include <string.h>

#include <algorithm>
#include <cmath>

#include "../cpu/gemm/tile.h"

namespace fastgraph {
namespace {

// Rows of a strip: enough pixels to pay for reading the weights once more, few enough that what lies beside them stays in L2.
constexpr int64_t kStripPixels = 96, kStripFloats = 96 * 1024;

// Cycles that a step of k takes, roughly, of two multiply-adds or loads each; eight sums at least hide their latency.
double tile_cycles(int64_t panels, int64_t rows) { return std::max({panels * rows / 2.0, (panels + rows) / 2.0, 4.0}) + 0.25; }

double run_cycles(int64_t panels, int64_t count, int64_t most) {
  const int64_t tiles = (count + most - 1) / most, rows = count / tiles, larger = count % tiles;
  return double(larger) * tile_cycles(panels, rows + 1) + double(tiles - larger) * tile_cycles(panels, rows);
}

}  // namespace

ConvBlocks::ConvBlocks(const std::vector<ConvSegment>& taps, int64_t longest) {
  int64_t total = 0;
  for (const ConvSegment& s : taps) total += s.length;
  const int64_t count = std::max<int64_t>(1, (total + longest - 1) / longest), even = (total + count - 1) / count, size = even + even % 2;
  int64_t k = 0, room = 0;
  if (total == 0) blocks.push_back({0, 0, 0});
  for (ConvSegment s : taps) {
    while (s.length > 0) {
      if (room == 0) {
        blocks.push_back({int64_t(segments.size()), 0, k});
        room = size;
      }
      const int64_t length = std::min(s.length, room);
      segments.push_back({s.offset, length});
      blocks.back().count++;
      s = {s.offset + length, s.length - length};
      k += length;
      room -= length;
    }
  }
}

void copy_pixels(const ConvLayer& layer, const ConvCall& call, const float* from, int64_t count, float* to) {
  const int64_t C = layer.geometry.in_channels;
  if (call.channel_stride != 1) return layer.kernels->interleave(from, call.channel_stride, count, C, to);
  if (call.pixel_stride == C) return void(memcpy(to, from, size_t(count * C) * sizeof(float)));
  for (int64_t i = 0; i < count; i++) memcpy(to + i * C, from + i * call.pixel_stride, size_t(C) * sizeof(float));
}

ConvUnits::ConvUnits(const ConvLayer& layer, int64_t count, int64_t least)
    : groups_(layer.geometry.groups), halves_(layer.geometry.ends_in_half()), panels_(layer.geometry.group_panels() - halves_), per_group_(panels_ + halves_),
      widest_(1) {
  double best = HUGE_VAL;
  for (int64_t width = 1; panels_ > 0 && width <= kMaxConvPanels && layer.most_rows(width) > 0; width++) {
    const int64_t units = (panels_ + width - 1) / width;
    if (width > 1 && groups_ * (units + halves_) < least) break;
    const int64_t narrow = panels_ / units, wider = panels_ % units;
    double cycles = double(units - wider) * run_cycles(narrow, count, layer.most_rows(narrow));
    if (wider) cycles += double(wider) * run_cycles(narrow + 1, count, layer.most_rows(narrow + 1));
    if (cycles <= best) {
      best = cycles;
      per_group_ = units + halves_;
      widest_ = narrow + (wider > 0);
    }
  }
}

const float* ConvSums::weights(const ConvUnit& unit) const {
  const ConvGeometry& g = layer.geometry;
  return layer.direct + (unit.group * g.group_panels() + unit.panel) * g.taps() * kConvLanes;
}

void ConvSums::run(const std::vector<PixelRun>& runs, int64_t first, int64_t last, float* sums) const {
  for (int64_t u = first; u < last; u++) {
    const ConvUnit unit = units[u];
    run_unit(runs, unit, weights(u + 1 < last ? units[u + 1] : unit), sums);
  }
}

// A block of k of some panels is read once, and stays in the caches for all pixels. `next`: the weights of the unit that follows.
void ConvSums::run_unit(const std::vector<PixelRun>& runs, const ConvUnit& unit, const float* next, float* sums) const {
  const ConvGeometry& g = layer.geometry;
  const int64_t channel = unit.group * g.group_outputs() + unit.panel * kConvLanes, width = unit.panels * kConvLanes;
  const int64_t channels = std::min(width, g.group_outputs() - unit.panel * kConvLanes);
  const int64_t most = layer.most_rows(unit.tile_panels());
  const float* const panels = weights(unit);
  ConvTile tile{};
  tile.panel_stride = g.taps() * kConvLanes;
  tile.residual_stride = residual_stride;
  tile.low = epilogue.low;
  tile.high = epilogue.high;
  for (size_t b = 0; b < blocks.blocks.size(); b++) {
    const ConvBlocks::Block& block = blocks.blocks[b];
    const bool is_first = b == 0, is_last = b + 1 == blocks.blocks.size();
    tile.segments = blocks.segments.data() + block.first;
    tile.segment_count = block.count;
    tile.weights = panels + block.k * kConvLanes;
    tile.base_stride = is_first ? 0 : width;
    tile.clamps = is_last && epilogue.clamps();
    tile.out_stride = is_last ? y_stride : width;
    tile.lanes = is_last ? channels - (width - kConvLanes) : unit.sum_lanes();
    const float* const following = is_last ? next : panels + blocks.blocks[b + 1].k * kConvLanes;
    float* so_far = sums;
    int64_t tiles = 0;
    for (const PixelRun& run : runs) {
      tile.pixel_stride = run.pixel_stride;
      for_tiles(run.count, most, [&](int64_t row, int64_t rows) {
        tile.pixels = run.pixels + unit.group * group_stride + row * run.pixel_stride;
        tile.ahead = tiles < unit.panels ? following + tiles++ * tile.panel_stride : tile.weights;
        tile.base = is_first ? layer.bias + (unit.group * g.group_panels() + unit.panel) * kConvLanes : so_far;
        tile.out = is_last ? run.out + row * y_stride + channel : so_far;
        tile.residual = is_last && run.residual ? run.residual + row * residual_stride + channel : nullptr;
        layer.tile(unit.tile_panels(), rows, tile);
        if (is_last)
          for (const ActivationCall& call : epilogue.activations) layer.kernels->activate(call, tile.out, y_stride, rows, channels);
        so_far += rows * width;
      });
    }
  }
}

ConvDivision ConvDivision::of(int64_t rows, int64_t pixels, int64_t floats, int64_t weights, int64_t read, int64_t panels, int threads) {
  const auto over = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t least = over(kStripPixels, pixels), most = std::max(least, kStripFloats / std::max<int64_t>(floats, 1));
  int64_t strips = over(rows, most), parts = 1;
  // Threads divide what is larger.
  if (weights > 4 * read) {
    parts = std::min<int64_t>(threads, panels);
    strips = std::min(rows, std::max(strips, over(threads, parts)));
  } else {
    strips = std::min(rows, over(strips, threads) * threads);
    parts = std::min(panels, over(threads, strips));
  }
  return {strips, parts};
}

}  // namespace fastgraph
