// Random calls of Copy, Pointwise, norms and reductions for sanitize.cpp: on every ISA and on threads the same bits, and nothing outside of
// the views is touched. What they compute is tested against torch.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../kernels/copy/cpu.h"
#include "../../kernels/norm/cpu.h"
#include "../../kernels/pointwise/cpu.h"
#include "../../kernels/reduce/cpu.h"
#include "../../kernels/runtime/families.h"
#include "guarded.h"

namespace fastgraph::tests {

using Sizes = std::vector<int64_t>;

// A view of memory of its own.
struct Strided {
  Sizes sizes, strides;
  std::unique_ptr<Guarded> memory;

  Strided(Sizes sizes_, Sizes strides_, float value) : sizes(std::move(sizes_)), strides(std::move(strides_)) {
    int64_t extent = 1;
    for (size_t i = 0; i < sizes.size(); i++) extent = sizes[i] == 0 || extent == 0 ? 0 : extent + (sizes[i] - 1) * strides[i];
    memory = std::make_unique<Guarded>(extent, value);
  }
  View view() { return {memory->data(), DType::f32, int(sizes.size()), sizes.data(), strides.data()}; }
};

// Strides for axes in any order of memory, perhaps with gaps.
template <class Random>
Sizes random_strides(Random& random, const Sizes& sizes) {
  Sizes order(sizes.size()), strides(sizes.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = int64_t(i);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[size_t(random.whole(0, int64_t(i) - 1))]);
  int64_t stride = 1;
  for (int64_t axis : order) {
    stride += random.chance(0.2) ? random.whole(1, 3) : 0;
    strides[size_t(axis)] = stride;
    stride *= std::max<int64_t>(1, sizes[size_t(axis)]);
  }
  return strides;
}

inline Sizes contiguous(const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(1, sizes[i])) strides[i] = stride;
  return strides;
}

// make() packs for the ISA in use. A line about what is wrong, or nothing.
inline std::string differs(const std::function<std::unique_ptr<Kernel>()>& make, std::vector<Strided>& inputs, const Sizes& sizes, const Sizes& strides,
                           const std::vector<std::string>& isas, int threads) {
  std::vector<View> from;
  for (Strided& input : inputs) from.push_back(input.view());
  std::unique_ptr<Strided> first;
  for (const std::string& isa : isas) {
    select_capability(isa.c_str());
    const auto kernel = make();
    for (int count : {1, threads, threads}) {
      auto y = std::make_unique<Strided>(sizes, strides, -12345.0f);
      const View to = y->view();
      kernel->run(from.data(), &to, count);
      for (int64_t i = 0; first && i < y->memory->size(); i++) {
        const float a = (*y->memory)[i], b = (*first->memory)[i];
        if (memcmp(&a, &b, sizeof a) != 0 && (a == a || b == b)) return isa + ": other bits at " + std::to_string(i);
      }
      if (!y->memory->untouched()) return isa + ": wrote beyond the result";
      if (!first) first = std::move(y);
    }
  }
  for (Strided& input : inputs)
    if (!input.memory->untouched()) return "wrote beyond an input";
  return "";
}

template <class Random>
Strided random_input(Random& random, const Sizes& sizes, const Sizes& strides) {
  Strided x(sizes, strides, 0);
  for (int64_t i = 0; i < x.memory->size(); i++)
    (*x.memory)[i] = random.chance(0.02) ? random.template one_of<float>({NAN, HUGE_VALF, -HUGE_VALF, 1e-42f, -0.0f, 1e30f, -3e5f}) : random.normal(2);
  return x;
}

template <class Random>
std::string try_pointwise(Random& random, const std::vector<std::string>& isas) {
  Sizes sizes;
  for (int64_t rank = random.whole(0, 4); rank > 0; rank--) sizes.push_back(random.chance(0.03) ? 0 : random.template one_of<int64_t>({1, 2, 3, random.whole(1, 40), 16}));
  std::vector<Strided> inputs;
  const int count = int(random.whole(1, 4)), constants = sizes.empty() ? 0 : int(random.whole(0, 2));
  for (int i = 0; i < count; i++) {
    Sizes own = sizes;
    for (int64_t& size : own) size = random.chance(0.3) ? 1 : size;
    inputs.push_back(random_input(random, own, random_strides(random, own)));
  }
  const int axis = sizes.empty() ? -1 : int(random.whole(-int64_t(sizes.size()), int64_t(sizes.size()) - 1));
  const int64_t length = sizes.empty() ? 1 : std::max<int64_t>(1, sizes[size_t(axis < 0 ? axis + int(sizes.size()) : axis)]);
  Strided vectors = random_input(random, {length * std::max(constants, 1)}, {1});
  std::vector<Pointwise::Constant> all;
  for (int i = 0; i < constants; i++) all.push_back({vectors.memory->data() + i * length, length});
  std::vector<Instruction> program;
  for (int i = int(random.whole(1, 6)); i > 0; i--) {
    const int registers = count + constants + int(program.size());
    Instruction next{static_cast<Opcode>(random.whole(0, int64_t(Pointwise::opcodes().size()) - 1)), {}, random.normal(1), random.normal(1)};
    for (int& r : next.reads) r = int(random.whole(0, registers - 1));
    if (next.opcode == Opcode::activation) next.reads[1] = int(random.template one_of<Activation>({Activation::relu, Activation::tanh, Activation::gelu, Activation::mish, Activation::softplus}));
    program.push_back(next);
  }
  const auto make = [&] { return std::make_unique<Pointwise>(program, count, all, axis, families::pointwise.kernels()); };
  return differs(make, inputs, sizes, random_strides(random, sizes), isas, int(random.whole(2, 4)));
}

template <class Random>
std::string try_copy(Random& random, const std::vector<std::string>& isas) {
  Sizes sizes;
  for (int64_t rank = random.whole(0, 5); rank > 0; rank--) sizes.push_back(random.template one_of<int64_t>({1, 3, 4, random.whole(1, 20), random.whole(1, 40)}));
  while (sizes.size() > 3 && *std::max_element(sizes.begin(), sizes.end()) > 20) sizes.pop_back();
  std::vector<Strided> inputs;
  inputs.push_back(random_input(random, sizes, random_strides(random, sizes)));
  return differs([] { return std::make_unique<Copy>(); }, inputs, sizes, random_strides(random, sizes), isas, int(random.whole(2, 4)));
}

template <class Random>
std::string try_rows(Random& random, const std::vector<std::string>& isas) {
  const int64_t rows = random.whole(0, 9), size = random.template one_of<int64_t>({1, 16, random.whole(1, 70), random.whole(1, 3000)});
  Strided weight = random_input(random, {size}, {1});
  const float* const w = random.chance(0.5) ? weight.memory->data() : nullptr;
  std::vector<Strided> inputs;
  const int kind = int(random.whole(0, 3));
  const Sizes sizes = {rows, size}, wider = {size + (kind < 2 ? random.whole(0, 5) : 0), 1};
  inputs.push_back(random_input(random, sizes, wider));
  const int which = int(random.whole(0, 3));
  const auto make = [&]() -> std::unique_ptr<Kernel> {
    if (kind == 0) return std::make_unique<LayerNorm>(size, w, w, 1e-5, families::norm.kernels());
    if (kind == 1) return std::make_unique<RmsNorm>(size, w, 1e-5, families::norm.kernels());
    if (kind == 2) return std::make_unique<Softmax>(which % 2, families::reduce.kernels());
    return std::make_unique<Reduce>(which, 1, families::reduce.kernels());
  };
  return differs(make, inputs, kind == 3 ? Sizes{rows} : sizes, kind == 3 ? Sizes{1} : contiguous(sizes), isas, int(random.whole(2, 4)));
}

template <class Random>
std::string try_group_norm(Random& random, const std::vector<std::string>& isas) {
  const int64_t groups = random.whole(1, 5), channels = groups * random.template one_of<int64_t>({1, 3, 16, random.whole(1, 30)});
  const Sizes sizes = {random.whole(1, 3), channels, random.whole(1, 12), random.whole(1, 12)};
  const auto last = [&](int64_t pixel) { return Sizes{pixel * sizes[2] * sizes[3], 1, pixel * sizes[3], pixel}; };
  Strided weight = random_input(random, {channels}, {1});
  std::vector<Strided> inputs;
  inputs.push_back(random_input(random, sizes, last(channels + random.whole(0, 3))));
  const auto make = [&] { return std::make_unique<GroupNorm>(groups, channels, weight.memory->data(), nullptr, 1e-5, families::norm.kernels()); };
  return differs(make, inputs, sizes, last(channels + random.whole(0, 3)), isas, int(random.whole(2, 4)));
}

}  // namespace fastgraph::tests
