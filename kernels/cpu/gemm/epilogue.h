// The epilogue vocabulary: what becomes of the sums of a layer. In registers, as a tile is done: bias, then ReLU. On rows of
// results that are still in the cache: the other activations (../activation.h), softmax, the copy to where the caller wants them.
#pragma once

#include <math.h>

#include "../activation.h"
#include "gemm.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// The part of an epilogue that is applied in registers: bias and a first ReLU. The first block of k adds its sums to the
// bias, the others to what `out` holds. `floor` is zero where a ReLU follows.
struct Epilogue {
  const float* base;
  int64_t stride;
  F16 floor;

  FASTGRAPH_INLINE_MEMBER Epilogue(const GemmLayer& layer, int64_t begin, int64_t panel, bool rectify, const float* out, int64_t ldo)
      : base(begin == 0 ? layer.bias + panel * kLanes : out), stride(begin == 0 ? 0 : ldo), floor(broadcast(rectify ? 0.0f : -INFINITY)) {}

  // Row i of a tile, panel v of it; a NaN stays one, as in relu().
  FASTGRAPH_INLINE_MEMBER F16 operator()(F16 sum, int i, int v = 0) const { return max(floor, add(load(base + i * stride + v * kLanes), sum)); }
};

FASTGRAPH_INLINE bool begins_with_relu(const GemmLayer& layer) { return layer.activation_count > 0 && layer.activations[0] == Activation::relu; }

// The activations that were not applied in registers.
[[maybe_unused]] void activate_panels(const GemmLayer& layer, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last) {
  if (layer.activates_late) return;
  for (int i = begins_with_relu(layer); i < layer.activation_count; i++)
    for (int64_t row = 0; row < rows; row++) activate({layer.activations[i]}, out + row * ldo + first * kLanes, last - first);
}

// Applies to y what was left for when results lie without gaps.
[[maybe_unused]] void activate_late(const GemmLayer& layer, float* y, int64_t count) {
  for (int i = begins_with_relu(layer); i < layer.activation_count; i++) {
    const int64_t vectors = count / kLanes, done = vectors * kLanes;
    activate({layer.activations[i]}, y, vectors);
    float rest[kLanes] = {};
    memcpy(rest, y + done, size_t(count - done) * sizeof(float));
    activate({layer.activations[i]}, rest, 1);
    memcpy(y + done, rest, size_t(count - done) * sizeof(float));
  }
}

[[maybe_unused]] void finish_rows(const GemmLayer& last, float* out, int64_t ldo, int64_t rows, float* y) {
  const int64_t N = last.out_features;
  if (N == 0) return;  // y may be null, and a softmax has no sixteen floats to look at
  const Activation tail = last.activation_count > 0 ? last.activations[last.activation_count - 1] : Activation::none;
  if (tail == Activation::softmax || tail == Activation::log_softmax)
    for (int64_t row = 0; row < rows; row++) softmax_row(out + row * ldo, N, tail == Activation::log_softmax);
  if (last.activates_late) {
    float* to = y;
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < N; i++) *to++ = out[row * ldo + i];
    activate_late(last, y, rows * N);
  } else {
    for (int64_t row = 0; row < rows; row++) memcpy(y + row * N, out + row * ldo, size_t(N) * sizeof(float));
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
