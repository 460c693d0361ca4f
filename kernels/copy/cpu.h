// Copy on the CPU: the same values in memory of another layout.
#pragma once

#include "../cpu/kernel.h"

namespace fastgraph {

class Copy : public Kernel {
 public:
  using Kernel::run;

  // fp32, up to eight axes, any strides each.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return 0; }
};

}  // namespace fastgraph
