// conv on the CPU: convolutions of one to two dimensions, channels last, with an epilogue. Weights and sums are fp32.
//
// Lanes are output channels: weights lie in panels [out / 16][k][16], k being the tap, then the input channel. Two methods:
//
//   direct.cpp    pixels are the rows of a product with the panels
//   winograd.cpp  F(2 x 2, 3 x 3), for kernels of 3 x 3 that advance by one pixel
//
// Order of sums, part of the package's contract: k runs upwards in the blocks of ../cpu/gemm/tile.h, whose sums are added up, beginning
// with the bias; Winograd's sums are in winograd.h. Which method a layer takes depends on its shape and the map's alone, so bits depend
// on neither batch, threads, nor instruction set, and no more on how a call is cut into strips and tiles.
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/activation.h"
#include "../cpu/aligned.h"
#include "../cpu/kernel.h"
#include "kernels.h"

namespace fastgraph {

struct ConvGeometry {
  int64_t in_channels, out_channels, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w;
  int64_t padding_top, padding_left, padding_bottom, padding_right, dilation_h, dilation_w;

  int64_t group_inputs() const { return in_channels / groups; }
  int64_t group_outputs() const { return out_channels / groups; }
  int64_t group_panels() const { return (group_outputs() + 15) / 16; }
  // Where it is 4 or 8, `groups` are panels of sixteen channels that hold groups of so many inputs and outputs.
  int64_t spread = 0;
  // Whether at most eight outputs are left for a group's last panel.
  bool ends_in_half() const { return !spread && (group_outputs() + 15) % 16 < 8; }
  int64_t taps() const { return kernel_h * kernel_w * (spread ? spread : group_inputs()); }
  int64_t out_height(int64_t height) const { return (height + padding_top + padding_bottom - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t out_width(int64_t width) const { return (width + padding_left + padding_right - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

// What becomes of the sums: activations(conv + bias + residual).
struct ConvEpilogue {
  bool residual = false;
  float low = -__builtin_inff(), high = __builtin_inff();  // the first activation, where it is a relu or clamp
  std::vector<ActivationCall> activations;                  // the others

  bool clamps() const { return low != -__builtin_inff() || high != __builtin_inff(); }

  ConvEpilogue() = default;
  ConvEpilogue(bool residual, const std::vector<ActivationCall>& activations);
};

// One call: memory and sizes, rank 3 as a map of height 1.
struct ConvCall {
  const float* x;
  int64_t image_stride, row_stride, pixel_stride, channel_stride;
  float* y;
  int64_t y_stride;  // from one pixel to the next, as of all below
  const float* residual;
  int64_t residual_stride;
  int64_t batch, height, width, out_height, out_width;

  ConvCall(const ConvGeometry& geometry, const View* inputs, const View* outputs, bool residual);
  int64_t out_pixels() const { return batch * out_height * out_width; }
};

// The packed layer.
struct ConvLayer {
  ConvGeometry geometry;
  const float* direct;    // [groups][panels][taps][16]
  const float* winograd;  // [panels][16][in_channels][16], or null
  const float* bias;      // [groups][panels][16]
  const float* zeros;     // [in_channels] and a few more
  float largest_pixel;    // up to which nothing in Winograd's sums overflows
  const ConvKernels* kernels;

  // Of the largest tile of so many panels, 0 for half a one; 0 where there is none.
  int most_rows(int64_t panels) const { return geometry.spread ? (panels == 1 ? kernels->spread_rows[geometry.spread / 8] : 0) : kernels->most_rows[panels]; }
  void tile(int64_t panels, int64_t rows, const ConvTile& tile) const {
    (geometry.spread ? kernels->spread[geometry.spread / 8] : kernels->tiles[panels])[rows](tile);
  }
};

// Whether a call of this layer is summed by Winograd's method.
bool takes_winograd(const ConvLayer& layer, const ConvCall& call);

void run_direct(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, Lease& lease);
void run_winograd(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, Lease& lease);

class Conv : public Kernel {
 public:
  // weight [O, C / groups, kernel_h, kernel_w] contiguous, bias [O] or null, in fp32, or both in bf16; both are copied, as fp32.
  Conv(const ConvGeometry& geometry, const void* weight, const void* bias, bool bf16, const ConvKernels& kernels);

  using Kernel::run;

  // x [N, C, W] or [N, C, H, W] to y [N, O, ...]: y channels last, x that or contiguous.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override { run(ConvEpilogue(), inputs, outputs, lease); }
  void run(const ConvEpilogue& epilogue, const View* inputs, const View* outputs, Lease& lease) const;

  int64_t packed_bytes() const override { return floats_ * int64_t(sizeof(float)); }

 private:
  ConvLayer layer_;
  AlignedFloats storage_;
  int64_t floats_;
};

// A convolution with what follows it; the weights are the convolution's, which outlives this.
class ConvWith : public Kernel {
 public:
  ConvWith(const Conv& conv, bool residual, const std::vector<ActivationCall>& activations) : conv_(conv), epilogue_(residual, activations) {}

  using Kernel::run;

  // [x], or [x, residual]: of y's sizes, channels last.
  int input_count() const override { return epilogue_.residual ? 2 : 1; }
  double estimate_ns(const View* inputs) const override { return conv_.estimate_ns(inputs); }
  void run(const View* inputs, const View* outputs, Lease& lease) const override { conv_.run(epilogue_, inputs, outputs, lease); }
  int64_t packed_bytes() const override { return conv_.packed_bytes(); }

 private:
  const Conv& conv_;
  ConvEpilogue epilogue_;
};

}  // namespace fastgraph
