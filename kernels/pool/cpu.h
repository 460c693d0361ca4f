// Pools on the CPU, channels last: the largest or the average value of windows, or of as many equal parts of the map as asked for. fp32.
#pragma once

#include <stdint.h>

#include "../cpu/kernel.h"
#include "../cpu/map.h"

namespace fastgraph {

// Values are part of the binding.
enum class PoolKind : int { max, average };

struct PoolGeometry {
  PoolKind kind;
  Window window;
  bool ceil_mode, count_include_pad;
  int64_t divisor;  // of averages: 0 where it is the window's size
};

// A row of the family pool.
struct PoolKernels {
  // One span of y = pool(x), as torch.nn.functional.max_pool2d and avg_pool2d.
  void (*span)(const PoolGeometry& g, const Map& x, const Map& y, const Span& span);
  // The same, as adaptive_max_pool2d and adaptive_avg_pool2d.
  void (*adaptive_span)(PoolKind kind, const Map& x, const Map& y, const Span& span);
};

class Pool : public Kernel {
 public:
  // std::invalid_argument for sizes that do not fit.
  Pool(const PoolGeometry& geometry, const PoolKernels& kernels);

  using Kernel::run;

  // [N, C, H, W] or [N, C, W], channels last.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;
  int64_t packed_bytes() const override { return 0; }

 private:
  PoolGeometry geometry_;
  const PoolKernels& kernels_;
};

// Window i of `out` begins at floor(i * in / out) and ends at ceil((i + 1) * in / out). An average is a sum by halves.
class AdaptivePool : public Kernel {
 public:
  AdaptivePool(PoolKind kind, int64_t height, int64_t width, const PoolKernels& kernels);

  using Kernel::run;

  // [N, C, H, W] or [N, C, W], channels last.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;
  int64_t packed_bytes() const override { return 0; }

 private:
  PoolKind kind_;
  int64_t height_, width_;
  const PoolKernels& kernels_;
};

}  // namespace fastgraph
