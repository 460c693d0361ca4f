// LayerNorm, RmsNorm and GroupNorm on the CPU. Sums are taken in one order whatever the batch, the threads and the instruction set.
#pragma once

#include <stdint.h>

#include "../cpu/aligned.h"
#include "../cpu/kernel.h"

namespace fastgraph {

// What is done to rows of `size` values. weight and bias have the size rounded up to 16.
struct RowNorm {
  int64_t size;
  const float *weight, *bias;
  double eps;
};

// A part of a channels-last map: pixels `stride` apart, some of its channels.
struct Pixels {
  const float* data;
  int64_t count, stride;
  int64_t channels;
};

// Of the values v - center of each channel.
struct ChannelMoments {
  double *sum, *squares;
};

// How a channel is normalized: ((x - center) - delta) scale + shift.
struct ChannelScale {
  const float *center, *delta, *scale, *shift;
};

struct NormKernels {
  void (*layer_norm)(const RowNorm& norm, const float* x, int64_t ldx, int64_t rows, float* y);
  void (*rms_norm)(const RowNorm& norm, const float* x, int64_t ldx, int64_t rows, float* y);
  void (*channel_moments)(const Pixels& x, const float* center, const ChannelMoments& moments);
  void (*scale_channels)(const Pixels& x, const ChannelScale& scale, float* y, int64_t y_stride);
};

// Weights and biases of a norm, one or zero where there are none.
class NormParameters {
 public:
  NormParameters(int64_t size, const float* weight, const float* bias);
  const float* weight() const { return values_.get(); }
  const float* bias() const { return values_.get() + padded_; }
  int64_t bytes() const { return 2 * padded_ * int64_t(sizeof(float)); }

 private:
  int64_t padded_;
  AlignedFloats values_;
};

// Over the last axis: (x - mean) / sqrt(variance + eps) weight + bias.
class LayerNorm : public Kernel {
 public:
  LayerNorm(int64_t size, const float* weight, const float* bias, double eps, const NormKernels& kernels)
      : LayerNorm(size, weight, bias, eps, kernels.layer_norm) {}

  using Kernel::run;

  // fp32 [..., size]; a matrix may have any stride between its rows.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return parameters_.bytes(); }

 protected:
  using Rows = decltype(NormKernels::layer_norm);
  LayerNorm(int64_t size, const float* weight, const float* bias, double eps, Rows rows)
      : size_(size), eps_(eps), parameters_(size, weight, bias), rows_(rows) {}

 private:
  int64_t size_;
  double eps_;
  NormParameters parameters_;
  Rows rows_;
};

// The same with x / sqrt(mean of squares + eps) weight.
class RmsNorm : public LayerNorm {
 public:
  RmsNorm(int64_t size, const float* weight, double eps, const NormKernels& kernels) : LayerNorm(size, weight, nullptr, eps, kernels.rms_norm) {}
};

// [N, channels, ...] channels last, input and result: over the pixels and channels of each of `groups` groups. Instance norm: a group a channel.
class GroupNorm : public Kernel {
 public:
  // std::invalid_argument where channels cannot be divided into groups.
  GroupNorm(int64_t groups, int64_t channels, const float* weight, const float* bias, double eps, const NormKernels& kernels);

  using Kernel::run;

  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return parameters_.bytes(); }

 private:
  struct Scratch;

  void find_moments(const Pixels& image, const Scratch& of, int64_t block) const;
  void move_centers(int64_t pixels, const Scratch& of) const;
  bool find_scales(int64_t pixels, const Scratch& of) const;

  int64_t groups_, channels_;
  double eps_;
  NormParameters parameters_;
  const NormKernels& kernels_;
};

}  // namespace fastgraph
