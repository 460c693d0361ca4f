// Convolution, bias, ReLU and max-pooling on the CPU in one pass; fp32, or with pixels and weights in bf16.
//
// Pixels are the vector lanes, so any number of output channels fills the registers, rows come out
// as rows ([O][W], ready to be the rows of an mlp), and one weight is broadcast over sixteen pixels.
// Convolution rows live only in registers: a tile of columns walks down the image, taking the vertical
// maximum as it goes, of columns that are already pooled along the row where pools_pairs() says so.
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/kernel.h"

namespace fastgraph {

struct ConvPoolGeometry {
  int64_t in_channels, out_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t pool_kernel_h, pool_kernel_w, pool_stride_h, pool_stride_w, pool_padding_h, pool_padding_w;
  bool ceil_mode;
};

// Sizes of one call, all derived from the geometry and the image's height and width.
struct ConvPoolShape {
  ConvPoolGeometry g;
  int64_t height, width;            // image
  int64_t conv_height, conv_width;  // after the convolution
  int64_t out_height, out_width;    // after the pool
  int64_t taps;                     // in_channels * kernel_h * kernel_w
  int64_t phase_width;              // floats in one stride phase of a window row
  int64_t strip_rows;               // pooled rows that one chunk computes
  int64_t window_rows;              // image rows behind them, padding included
  int64_t open_rows;                // pooled rows that one convolution row can belong to
  int64_t group_channels;           // output channels that one column of the image meets before the next
  int64_t maxima_rows;              // rows of vertical maxima that are held at once
  int64_t maxima_width;             // floats in one row of vertical maxima, margins included
  bool beyond;                      // windows reach beyond the convolution's last column
  int64_t window_floats;            // for the image rows behind a strip, padded, or transformed column by column
  int64_t scratch_floats;           // for one strip
};

constexpr int64_t kWinogradCell = 64;  // floats: four transformed vectors of one channel of one image row

// Left of each row of vertical maxima: zeros, which are what padding contributes after ReLU.
constexpr int64_t kMaximaMargin = 16;

// Largest open_rows, pool_padding_w at most kMaximaMargin: op.py refuses what exceeds them.
constexpr int64_t kMaxOpenRows = 16;

// Whether windows are two or three columns wide and advance by two: they are pooled in registers, from columns in pairs.
inline bool pools_pairs(const ConvPoolGeometry& g) { return g.pool_stride_w == 2 && (g.pool_kernel_w == 2 || g.pool_kernel_w == 3); }

// What the strips of one call share.
struct ConvPoolCall {
  ConvPoolShape shape;
  const float* weight;    // [out_channels][taps]
  const float* winograd;  // [2][kernel_h][in_channels][out_channels][2], see winograd.h; null where it is not used
  const uint32_t* winograd_pairs;  // the same in bf16, [2][pairs of taps][out_channels][2]: used instead where it is not null
  const float* bias;      // [out_channels]
  float bound;            // no sum overflows where all pixels (winograd: all transformed ones) are at most this large
  float weight_norm;      // root of the sum of squared weights, the largest among output channels
  // In bytes, for tap k: from a position in the padded copy of the image, and from one in the image itself.
  const int64_t *window_offsets, *image_offsets;
};

// A row of the family conv_pool.
struct ConvPoolKernels {
  // Pooled rows [first, first + count) of one image [C, H, W], of which `readable` floats may be read, to
  // out[o * out_channel + (row - first) * out_width]. scratch holds shape.scratch_floats floats.
  void (*strip)(const ConvPoolCall& call, const float* image, int64_t readable, int64_t first, int64_t count, float* out,
                int64_t out_channel, float* scratch);
  bool dots;  // takes winograd_pairs
};

// One call: its shape, and the strips of pooled rows that are its chunks.
struct ConvPoolStrips {
  ConvPoolCall call;
  std::vector<int64_t> offsets;  // call points into it
  const float* images;
  int64_t batch, per_image;

  int64_t count() const { return batch * per_image; }
};

// Strip `chunk`: of which image, and which pooled rows.
struct ConvPoolStrip {
  int64_t image, first, count;
};

class ConvPool : public Kernel {
 public:
  // weight [O, C, kernel_h, kernel_w] contiguous, bias [O] or null; both are copied. With `bf16`, where the kernels have dot
  // products, Winograd's pixels and weights are rounded to bf16.
  ConvPool(const ConvPoolGeometry& geometry, const float* weight, const float* bias, bool bf16, const ConvPoolKernels& kernels);

  using Kernel::run;

  // max_pool(relu(conv(x[N, C, H, W]))) as [N, O, out_height, out_width]
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  // Throws std::invalid_argument where the kernel or the pool does not fit into the image.
  ConvPoolShape shape(int64_t height, int64_t width, int64_t batch, int threads) const;

  ConvPoolStrips strips(const View& x, int threads) const;
  ConvPoolStrip strip(const ConvPoolStrips& strips, int64_t chunk) const;
  // To out[o * out_channel + (row - first) * out_width]; scratch holds shape.scratch_floats floats.
  void run_strip(const ConvPoolStrips& strips, const ConvPoolStrip& strip, float* out, int64_t out_channel, float* scratch) const;

  int64_t out_channels() const { return geometry_.out_channels; }
  int64_t packed_bytes() const override { return int64_t((weight_.size() + winograd_.size() + winograd_pairs_.size() + bias_.size()) * sizeof(float)); }

 private:
  bool has_winograd() const { return !winograd_.empty() || !winograd_pairs_.empty(); }

  ConvPoolGeometry geometry_;
  const ConvPoolKernels& kernels_;
  std::vector<float> weight_, winograd_, bias_;
  std::vector<uint32_t> winograd_pairs_;
  float bound_, weight_norm_;
};

}  // namespace fastgraph
