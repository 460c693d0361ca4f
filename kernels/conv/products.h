// What both methods share: the loops over panels, blocks of k and tiles of pixels, and how a call is divided.
#pragma once

#include <vector>

#include "../cpu/gemm/gemm.h"
#include "cpu.h"

namespace fastgraph {

constexpr int64_t kConvLanes = 16;

// The taps of a pixel, cut into the blocks of k that are summed one after the other (../cpu/gemm/tile.h).
struct ConvBlocks {
  struct Block {
    int64_t first, count;  // segments
    int64_t k;             // of the first tap
  };
  std::vector<ConvSegment> segments;
  std::vector<Block> blocks;

  // `taps`: where they lie, in their order.
  explicit ConvBlocks(const std::vector<ConvSegment>& taps, int64_t longest = kMaxSumBlock);
};

// Panels that are summed together, all of one group.
struct ConvUnit {
  int64_t group, panel, panels;  // panel: within the group
  bool is_half;                  // the last one of a group, of eight outputs at most

  int64_t tile_panels() const { return is_half ? 0 : panels; }
  int64_t sum_lanes() const { return is_half ? kConvLanes / 2 : kConvLanes; }  // of the last panel
};

class ConvUnits {
 public:
  // For pixels that come in runs of `count`; at least `least` units if there are so many panels.
  ConvUnits(const ConvLayer& layer, int64_t count, int64_t least);

  int64_t count() const { return groups_ * per_group_; }
  int64_t widest() const { return widest_; }  // panels
  ConvUnit operator[](int64_t i) const {
    const int64_t part = i % per_group_, whole = per_group_ - halves_;
    if (part == whole) return {i / per_group_, panels_, 1, true};
    const int64_t first = panels_ * part / whole;
    return {i / per_group_, first, panels_ * (part + 1) / whole - first, false};
  }

 private:
  int64_t groups_, halves_, panels_, per_group_, widest_;  // panels_: whole ones of a group
};

// Calls body(first row, rows) for tiles of at most `most` rows, the fewest, as even as can be.
template <class Body>
void for_tiles(int64_t rows, int64_t most, const Body& body) {
  const int64_t count = (rows + most - 1) / most;
  for (int64_t t = 0, first = 0; t < count; t++) {
    const int64_t end = rows * (t + 1) / count;
    body(first, end - first);
    first = end;
  }
}

// Pixels of one row, to channels last without gaps, whatever they were.
void copy_pixels(const ConvLayer& layer, const ConvCall& call, const float* from, int64_t count, float* to);

// Pixels a constant stride apart, and where their results go.
struct PixelRun {
  const float* pixels;
  int64_t pixel_stride, count;
  float* out;
  const float* residual;  // or null
};

// Sums of products of runs of pixels with the panels, and what follows them.
struct ConvSums {
  const ConvLayer& layer;
  const ConvEpilogue& epilogue;
  const ConvUnits& units;
  const ConvBlocks& blocks;
  int64_t group_stride;  // floats from a pixel's taps of one group to those of the next
  int64_t y_stride, residual_stride;

  // Units [first, last); `sums` holds floats(pixels).
  void run(const std::vector<PixelRun>& runs, int64_t first, int64_t last, float* sums) const;
  int64_t floats(int64_t pixels) const { return blocks.blocks.size() > 1 ? pixels * units.widest() * kConvLanes : 0; }

 private:
  void run_unit(const std::vector<PixelRun>& runs, const ConvUnit& unit, const float* next, float* sums) const;
  const float* weights(const ConvUnit& unit) const;
};

// How a call is cut into chunks: strips of rows, and parts of the panels. Each chunk has its own copy of what its strip reads: lines that
// another core has written cost more (256 @ 8 x 8 on two cores of Zen 4: 245 us with one copy for both, 163 with two).
struct ConvDivision {
  int64_t strips, parts;

  // pixels and floats: of one row, with what lies beside it in scratch memory; weights and read: floats of weights, and of all rows.
  static ConvDivision of(int64_t rows, int64_t pixels, int64_t floats, int64_t weights, int64_t read, int64_t panels, int threads);

  // Calls body(first row, last, first unit, last) for each chunk.
  template <class Body>
  void run(int64_t rows, int64_t units, Lease& lease, const Body& body) const {
    lease.run(strips * parts, [&](int64_t chunk) {
      const int64_t strip = chunk / parts, part = chunk % parts;
      body(rows * strip / strips, rows * (strip + 1) / strips, units * part / parts, units * (part + 1) / parts);
    });
  }
};

}  // namespace fastgraph
