// conv_pool_mlp on the CPU: see cpu.h.
#include "cpu.h"

#include <algorithm>

#include "../cpu/arena.h"

namespace fastgraph {
namespace {

// Rows taken at once: their activations stay in L1 and L2.
constexpr int64_t kMlpRows = 96;

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

double ConvPoolMlp::estimate_ns(const View* inputs) const {
  const int64_t* sizes = inputs[0].sizes;
  const ConvPoolShape s = conv_pool_.shape(sizes[2], sizes[3], sizes[0], 1);
  return conv_pool_.estimate_ns(inputs) + mlp_.block_estimate_ns(sizes[0] * conv_pool_.out_channels() * s.out_height);
}

void ConvPoolMlp::run(const View* inputs, const View* outputs, Lease& lease) const {
  const ConvPoolStrips strips = conv_pool_.strips(inputs[0], lease.threads());
  const ConvPoolShape& s = strips.call.shape;
  const int64_t channels = conv_pool_.out_channels(), features = mlp_.out_features(), most_rows = channels * s.strip_rows;
  auto* const y = static_cast<float*>(outputs[0].data);
  lease.run(strips.count(), [&](int64_t chunk) {
    const ConvPoolStrip strip = conv_pool_.strip(strips, chunk);
    float* scratch = thread_arena(round_up(s.scratch_floats) + round_up(most_rows * s.out_width) + round_up(most_rows * features) +
                                  mlp_.scratch_floats(kMlpRows));
    float* pooled = scratch + round_up(s.scratch_floats);  // [channels][strip.count][out_width]
    float* result = pooled + round_up(most_rows * s.out_width);
    float* mlp_scratch = result + round_up(most_rows * features);
    conv_pool_.run_strip(strips, strip, pooled, strip.count * s.out_width, scratch);
    for (int64_t row = 0; row < channels * strip.count; row += kMlpRows)
      mlp_.run_block(pooled + row * s.out_width, s.out_width, std::min(kMlpRows, channels * strip.count - row), result + row * features, mlp_scratch);
    for (int64_t o = 0; o < channels; o++)
      std::copy(result + o * strip.count * features, result + (o + 1) * strip.count * features,
                y + ((strip.image * channels + o) * s.out_height + strip.first) * features);
  });
}

}  // namespace fastgraph
