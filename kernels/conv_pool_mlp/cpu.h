// conv_pool_mlp on the CPU: an mlp of every row of pooled pixels, as a schedule of the two: strip by strip, while the rows are in L2.
#pragma once

#include "../conv_pool/cpu.h"
#include "../mlp/cpu.h"

namespace fastgraph {

class ConvPoolMlp : public Kernel {
 public:
  // Both outlive it.
  ConvPoolMlp(const ConvPool& conv_pool, const Mlp& mlp) : conv_pool_(conv_pool), mlp_(mlp) {}

  using Kernel::run;

  // x[N, C, H, W] to [N * O * out_height, mlp.out_features]; needs out_width == mlp.in_features.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return conv_pool_.packed_bytes() + mlp_.packed_bytes(); }

 private:
  const ConvPool& conv_pool_;
  const Mlp& mlp_;
};

}  // namespace fastgraph
