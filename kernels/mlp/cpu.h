// mlp on the CPU: a chain of Linear layers with activations, as a schedule over the GEMM core. Weights are fp32 or bf16, sums fp32.
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/gemm/gemm.h"
#include "../cpu/kernel.h"

namespace fastgraph {

class Mlp : public Kernel {
 public:
  struct Source {
    const void* weight;  // [out_features, in_features], contiguous, in the kernels' format
    const float* bias;   // [out_features] or null
    int64_t out_features, in_features;
    std::vector<Activation> activations;
  };

  Mlp(const std::vector<Source>& sources, const GemmKernels& gemm, const ElementwiseKernels& elementwise);

  using Kernel::run;

  // [..., in_features] to [..., out_features]; a matrix may have any stride between its rows. fp32 to fp32, or bf16 to bf16
  // (round to nearest even).
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  // The same for one block of rows, `ldx` apart, on this thread; scratch holds scratch_floats(rows) floats.
  void run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const;
  int64_t scratch_floats(int64_t rows) const { return (gemm_.narrow ? 4 : 2) * rows * width_; }
  double block_estimate_ns(int64_t rows) const;

  int64_t in_features() const { return layers_.front().in_features; }
  int64_t out_features() const { return layers_.back().out_features; }
  int64_t packed_bytes() const override { return packed_words_ * int64_t(sizeof(float)); }

 private:
  void run_f32(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;
  void run_bf16(const uint16_t* x, int64_t ldx, int64_t rows, uint16_t* y, Lease& lease) const;
  void run_rows(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;
  void run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;
  // Calls step(layer, a, lda, out, ldo, narrowed) for every layer, with what it reads and where it writes in `scratch`; then
  // finishes.
  template <class Step>
  void for_layers(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch, const Step& step) const;

  std::vector<GemmLayer> layers_;
  AlignedFloats storage_;
  const GemmKernels& gemm_;
  const ElementwiseKernels& elementwise_;
  int64_t width_ = 0;          // widest layer, padded; where activations are narrowed at least half the widest input too
  int64_t multiply_adds_ = 0;  // per row
  int64_t packed_words_ = 0;   // of 32 bits
};

}  // namespace fastgraph
