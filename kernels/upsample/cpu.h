// Resizing maps on the CPU, channels last: by the nearest pixel, or linear between two or four. fp32.
#pragma once

#include <stdint.h>

#include "../cpu/kernel.h"
#include "../cpu/map.h"

namespace fastgraph {

// Values are part of the binding.
enum class UpsampleMode : int { nearest, linear, nearest_exact };

struct UpsampleGeometry {
  UpsampleMode mode;
  bool align_corners;            // linear
  float height_scale, width_scale;  // input pixels a pixel of the result, as ATen's area_pixel_compute_scale gives them
};

// Where a row or a column of the result comes from: weights[0] * pixel[0] + weights[1] * pixel[1].
struct Source {
  int64_t pixel[2];
  float weight[2];
};

// A row of the family upsample.
struct UpsampleKernels {
  // One span of y; `rows` is what its row comes from, columns those of its pixels first .. last - 1.
  void (*nearest_span)(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span);
  void (*linear_span)(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span);
  void (*bilinear_span)(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span);
};

class Upsample : public Kernel {
 public:
  Upsample(const UpsampleGeometry& geometry, const UpsampleKernels& kernels);

  using Kernel::run;

  // [N, C, H, W] or [N, C, W], channels last, to another height and width.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;
  int64_t packed_bytes() const override { return 0; }

 private:
  Source source(int64_t i, float scale, int64_t in, int64_t out) const;

  UpsampleGeometry geometry_;
  const UpsampleKernels& kernels_;
};

}  // namespace fastgraph
