// Reductions and softmax over rows of contiguous values on the CPU.
#pragma once

#include <stdint.h>

#include "../cpu/kernel.h"

namespace fastgraph {

// Values are part of the binding.
enum class Reduction : int { sum, mean, amax, amin };

struct ReduceKernels {
  // y[row] of x [rows, size], contiguous; size > 0.
  void (*reduce)(Reduction kind, const float* x, int64_t rows, int64_t size, float* y);
  // softmax or log_softmax of each row
  void (*softmax)(bool is_log, const float* x, int64_t rows, int64_t size, float* y);
};

class Reduce : public Kernel {
 public:
  // Over the last `axes` axes; sums in a fixed order, see sums.h. std::invalid_argument for another kind, or no axes.
  Reduce(int kind, int axes, const ReduceKernels& kernels);

  using Kernel::run;

  // fp32, contiguous, to the sizes of the axes before; largest and smallest need a value.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return 0; }

 private:
  int64_t row_size(const View& x) const;

  Reduction kind_;
  int axes_;
  const ReduceKernels& kernels_;
};

class Softmax : public Kernel {
 public:
  Softmax(bool is_log, const ReduceKernels& kernels) : is_log_(is_log), kernels_(kernels) {}

  using Kernel::run;

  // fp32, contiguous, over the last axis.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return 0; }

 private:
  bool is_log_;
  const ReduceKernels& kernels_;
};

}  // namespace fastgraph
