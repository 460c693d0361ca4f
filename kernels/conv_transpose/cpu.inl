// What becomes of the sums of a transposed convolution.
#include "../cpu/elementwise.h"
#include "../cpu/pixels.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

[[maybe_unused]] void finish_pixels(const ActivationList& activations, const PixelRun& run) {
  const F16 low = broadcast(activations.low), high = broadcast(activations.high);
  for (int64_t i = 0; i < run.count; i++)
    for (int64_t c = 0; c < run.channels; c += kLanes) {
      const int64_t lanes = smaller(kLanes, run.channels - c);
      F16 y = load_lanes(run.sums + i * run.sums_step + c, lanes);
      if (run.residual) y = add(y, load_lanes(run.residual + i * run.residual_step + c, lanes));
      store_lanes(run.to + i * run.to_step + c, clamp(y, low, high), lanes);
    }
  activate_pixels(activations, run.to, run.count, run.channels, run.to_step);
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
