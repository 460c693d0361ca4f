// Transposed convolution on the CPU, channels last, where windows neither overlap nor leave gaps: the kernel is as large as the stride.
// Every tap is then a product of all pixels with a matrix, whose results are rows of every stride-th pixel. fp32.
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/gemm/gemm.h"
#include "../cpu/kernel.h"
#include "../cpu/map.h"

namespace fastgraph {

struct ActivationCall;
struct ActivationList;

// The sums of pixels beside each other, and where they go.
struct PixelRun {
  const float *sums, *residual;  // residual may be null
  float* to;
  int64_t sums_step, residual_step, to_step, count, channels;
};

// A row of the family conv_transpose.
struct ConvTransposeKernels {
  // to = activations(sums + residual)
  void (*finish)(const ActivationList& activations, const PixelRun& run);
};

class ConvTranspose : public Kernel {
 public:
  // weight [in_channels, out_channels, height, width] contiguous, bias [out_channels] or null; both are copied.
  // std::invalid_argument for sizes that do not fit.
  ConvTranspose(int64_t in_channels, int64_t out_channels, int64_t height, int64_t width, const float* weight, const float* bias,
                const GemmKernels& gemm, const ConvTransposeKernels& kernels);

  using Kernel::run;

  // [N, C, H, W] or [N, C, W] to [N, O, height * H, width * W], channels last.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;
  void run(const View* inputs, const View* outputs, Lease& lease, bool residual, const std::vector<ActivationCall>& activations) const;

  int64_t packed_bytes() const override { return packed_words_ * int64_t(sizeof(float)); }

 private:
  int64_t in_channels_, out_channels_, height_, width_, packed_words_ = 0;
  std::vector<GemmLayer> taps_;  // row-major
  AlignedFloats storage_;
  const GemmKernels& gemm_;
  const ConvTransposeKernels& kernels_;
};

// The same with an epilogue: y = activations(conv_transpose(x) + residual).
class ConvTransposeWith : public Kernel {
 public:
  // std::invalid_argument where an activation is not elementwise.
  ConvTransposeWith(const ConvTranspose& conv, bool residual, const std::vector<ActivationCall>& activations);

  using Kernel::run;

  int input_count() const override { return residual_ ? 2 : 1; }
  double estimate_ns(const View* inputs) const override { return conv_.estimate_ns(inputs); }
  void run(const View* inputs, const View* outputs, Lease& lease) const override { conv_.run(inputs, outputs, lease, residual_, activations_); }
  int64_t packed_bytes() const override { return 0; }

 private:
  const ConvTranspose& conv_;
  bool residual_;
  std::vector<ActivationCall> activations_;
};

}  // namespace fastgraph
