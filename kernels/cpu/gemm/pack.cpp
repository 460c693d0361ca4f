// Weights to panels; the layout is the same for every instruction set.
#include <algorithm>

#include "gemm.h"

namespace fastgraph {
namespace {

// Outputs of the panel that begins with output `first`.
int64_t panel_lanes(int64_t first, int64_t out_features) { return out_features - first > kPanel / 2 ? kPanel : kPanel / 2; }

int64_t words_of(const GemmLayer& layer, int64_t steps) {
  const int64_t lanes = layer.panel_count * kPanel - (layer.ends_in_half() ? kPanel / 2 : 0);
  return (lanes * steps + kPanel - 1) / kPanel * kPanel;
}

// panels[p][k][j] = weight[16 p + j][k]
void pack_f32(const GemmLayer& layer, const void* weights, void* to) {
  const auto* weight = static_cast<const float*>(weights);
  for (int64_t first = 0; first < layer.out_features; first += kPanel) {
    const int64_t lanes = panel_lanes(first, layer.out_features), count = std::min(lanes, layer.out_features - first);
    float* panel = static_cast<float*>(to) + first * layer.in_features;
    for (int64_t k = 0; k < layer.in_features; k++)
      for (int64_t j = 0; j < lanes; j++) panel[k * lanes + j] = j < count ? weight[(first + j) * layer.in_features + k] : 0.0f;
  }
}

// panels[p][k / 2][j] holds weight[16 p + j][k] and [k + 1].
void pack_bf16(const GemmLayer& layer, const void* weights, void* to) {
  const auto* weight = static_cast<const uint16_t*>(weights);
  auto* words = static_cast<uint32_t*>(to);
  const auto at = [&](int64_t row, int64_t k) {
    return row < layer.out_features && k < layer.in_features ? uint32_t(weight[row * layer.in_features + k]) : uint32_t(0);
  };
  for (int64_t first = 0; first < layer.out_features; first += kPanel)
    for (int64_t k = 0; k < layer.in_features; k += 2)
      for (int64_t j = 0; j < panel_lanes(first, layer.out_features); j++) *words++ = at(first + j, k) | at(first + j, k + 1) << 16;
}

}  // namespace

const WeightFormat f32_panels = {[](const GemmLayer& layer) { return words_of(layer, layer.in_features); }, pack_f32};
const WeightFormat bf16_pairs = {[](const GemmLayer& layer) { return words_of(layer, (layer.in_features + 1) / 2); }, pack_bf16};

}  // namespace fastgraph
