// What a layer ends with: a list of elementwise activations, the first of which may be a clamp in registers.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "activation.h"

namespace fastgraph {

struct ActivationList {
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  const ActivationCall* calls;  // after the clamp
  int64_t count;

  // `all` outlives the list.
  explicit ActivationList(const std::vector<ActivationCall>& all) : calls(all.data()), count(int64_t(all.size())) {
    if (all.empty() || (all[0].kind != Activation::relu && all[0].kind != Activation::clamp)) return;
    low = all[0].kind == Activation::relu ? 0 : all[0].a;
    if (all[0].kind == Activation::clamp) high = all[0].b;
    calls++;
    count--;
  }
};

inline void check_elementwise(const std::vector<ActivationCall>& calls, const char* what) {
  for (const ActivationCall& one : calls)
    if (one.kind < Activation::none || one.kind > Activation::softplus || one.kind == Activation::softmax || one.kind == Activation::log_softmax)
      throw std::invalid_argument(std::string(what) + ": needs elementwise activations");
}

}  // namespace fastgraph
