// What kernels do to the channels of single pixels.
#pragma once

#include "elementwise.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// The first `lanes` of a vector.
FASTGRAPH_INLINE F16 load_lanes(const float* p, int64_t lanes) { return lanes == kLanes ? load(p) : load_first(p, lanes); }
FASTGRAPH_INLINE void store_lanes(float* p, F16 x, int64_t lanes) {
  if (lanes == kLanes) store(p, x);
  else store_first(p, x, lanes);
}

// The activations behind a clamp, on `count` pixels, `pixel` apart; without gaps they are one run.
[[maybe_unused]] void activate_pixels(const ActivationList& activations, float* y, int64_t count, int64_t channels, int64_t pixel) {
  const bool is_run = channels == pixel;
  const int64_t runs = is_run ? 1 : count, values = is_run ? channels * count : channels;
  for (int64_t a = 0; a < activations.count; a++)
    with_function(activations.calls[a], [&](const auto& function) {
      for (int64_t i = 0; i < runs; i++)
        for (int64_t c = 0; c < values; c += kLanes) {
          const int64_t lanes = smaller(kLanes, values - c);
          float* at = y + i * pixel + c;
          store_lanes(at, function(load_lanes(at, lanes)), lanes);
        }
    });
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
