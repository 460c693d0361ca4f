// What a row of the family `conv` has: the inner loops, compiled once for each instruction set. The loops around them (direct.cpp,
// winograd.cpp) are compiled once.
#pragma once

#include <stdint.h>

namespace fastgraph {

struct ActivationCall;

constexpr int kMaxConvPanels = 4, kMaxConvRows = 14;  // of a tile

// A stretch of a pixel's taps that lies in memory without gaps, as its weights do.
struct ConvSegment {
  int64_t offset, length;  // in floats, from the first tap of a pixel
};

// Some pixels beside some panels of sixteen output channels: out = clamp(base + sum of products + residual).
struct ConvTile {
  const float* pixels;  // the first tap of the first pixel
  int64_t pixel_stride;
  const ConvSegment* segments;
  int64_t segment_count;
  const float* weights;  // [panel][k][16], at the first segment
  int64_t panel_stride;
  const float* ahead;  // weights wanted next: as many lines as there are steps of k are fetched into L2
  const float* base;   // bias (stride 0) or earlier sums; null where there is nothing
  int64_t base_stride;
  const float* residual;  // or null
  int64_t residual_stride;
  bool clamps;  // to [low, high]
  float low, high;
  float* out;
  int64_t out_stride;
  int64_t lanes;  // of the last panel, 1 to 16: nothing beyond is read from `residual` or written
};


// The outputs of one Winograd tile: null where one is outside the map.
struct ConvWinogradTile {
  const float* sums;  // of position (0, 0); panels follow each other
  int64_t position_stride;
  const float* bias;
  const float* residual[4];
  float* out[4];
  float low, high;
  int64_t panels, lanes;
};

struct ConvKernels {
  int most_rows[kMaxConvPanels + 1];  // of a tile of so many panels; 0 where there is none
  // tiles[panels][rows]; tiles[0] are of half a panel
  void (*const (*tiles)[kMaxConvRows + 1])(const ConvTile&);
  // Of the tiles of small groups, as many outputs as inputs: spread[0][rows] has groups of four, spread[1] of eight.
  int spread_rows[2];
  void (*const (*spread)[kMaxConvRows + 1])(const ConvTile&);
  // Channels `channel_stride` apart to pixels without gaps.
  void (*interleave)(const float* from, int64_t channel_stride, int64_t count, int64_t channels, float* to);
  // B^T d B of a tile of 4 x 4 pixels: position p to to[p * position_stride + c]; zeros up to a multiple of sixteen channels.
  void (*transform)(const float* const (&pixels)[16], int64_t channels, float* to, int64_t position_stride);
  void (*finish)(const ConvWinogradTile&);
  // Largest absolute value of each of `count` pixels, as bit patterns: NaN is the largest of all.
  void (*largest)(const float* pixels, int64_t pixel_stride, int64_t count, int64_t channels, float* to);
  void (*activate)(const ActivationCall& call, float* out, int64_t stride, int64_t rows, int64_t channels);
};

}  // namespace fastgraph
