// Depthwise convolution on the CPU, channels last: every output channel is a sum over one input channel. fp32.
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/kernel.h"
#include "../cpu/map.h"

namespace fastgraph {

struct ActivationCall;
struct ActivationList;

struct DepthwiseGeometry {
  int64_t in_channels, out_channels;  // the second is a multiple of the first
  Window window;
};

// What the rows of one call share.
struct DepthwiseCall {
  Window window;
  const float* panels;  // [vectors][kernel_h * kernel_w][16], the last vector the last sixteen channels, where there are so many
  int64_t panel_stride;
  const float* bias;    // [channels], with zeros up to sixteen
  const ActivationList& activations;
};

// A row of the family depthwise.
struct DepthwiseKernels {
  // y = activations(bias + windows of x times weight + residual) for one span; x has y's channels. residual may be null.
  void (*span)(const DepthwiseCall& call, const Map& x, const Map* residual, const Map& y, const Span& span);
};

class Depthwise : public Kernel {
 public:
  // weight [O, 1, kernel_h, kernel_w] contiguous, bias [O] or null; both are copied. std::invalid_argument for sizes that do not fit.
  Depthwise(const DepthwiseGeometry& geometry, const float* weight, const float* bias, const DepthwiseKernels& kernels);

  using Kernel::run;

  // [N, C, H, W] or [N, C, W] to the same with O channels, channels last.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;
  void run(const View* inputs, const View* outputs, Lease& lease, bool residual, const std::vector<ActivationCall>& activations) const;

  int64_t packed_bytes() const override { return packed_floats_ * int64_t(sizeof(float)); }

 private:
  void widen(DepthwiseCall call, const Map& x, const Map* residual, const Map& y, const Span& span) const;

  DepthwiseGeometry geometry_;
  int64_t bias_at_, packed_floats_;
  AlignedFloats packed_;  // panels, bias
  const DepthwiseKernels& kernels_;
};

// The same with an epilogue: y = activations(depthwise(x) + residual).
class DepthwiseWith : public Kernel {
 public:
  // std::invalid_argument where an activation is not elementwise.
  DepthwiseWith(const Depthwise& depthwise, bool residual, const std::vector<ActivationCall>& activations);

  using Kernel::run;

  int input_count() const override { return residual_ ? 2 : 1; }
  double estimate_ns(const View* inputs) const override { return depthwise_.estimate_ns(inputs); }
  void run(const View* inputs, const View* outputs, Lease& lease) const override {
    depthwise_.run(inputs, outputs, lease, residual_, activations_);
  }
  int64_t packed_bytes() const override { return 0; }

 private:
  const Depthwise& depthwise_;
  bool residual_;
  std::vector<ActivationCall> activations_;
};

}  // namespace fastgraph
