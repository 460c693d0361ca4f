#include "plan.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../cpu/aligned.h"
#include "../cpu/arena.h"

namespace fastgraph {
namespace {

constexpr int64_t kAlign = 16;  // floats: a cache line

// An arena of up to so many floats (64 MB) is kept for the thread's next call; a larger one goes back with the call, as a tensor's memory.
constexpr int64_t kKeptFloats = int64_t(1) << 24;

AlignedFloats own_arena(int64_t floats) { return floats > kKeptFloats ? aligned_floats(floats) : AlignedFloats(nullptr, free); }

// One thread's time below which a step is not handed out: waiting for others takes about a microsecond.
constexpr double kSmall_ns = 4000;

int64_t numel(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

std::vector<int64_t> contiguous(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  return strides;
}

// Steps between which memory holds a value that is still wanted.
struct Life {
  int slot, first, last;
  int64_t floats;
};

}  // namespace

Plan::Plan(int slot_count, std::vector<int> inputs, std::vector<int> outputs, std::vector<Step> steps, std::vector<int> memory_of)
    : slot_count_(slot_count), inputs_(std::move(inputs)), outputs_(std::move(outputs)), steps_(std::move(steps)), memory_of_(std::move(memory_of)) {
  check();
}

void Plan::check() const {
  const auto require = [](bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("Plan: ") + what);
  };
  require(memory_of_.size() == size_t(slot_count_), "memory_of: needs one entry a slot");
  std::vector<bool> written(size_t(slot_count_), false);
  const auto at = [&](int slot) {
    require(slot >= 0 && slot < slot_count_, "a slot is out of range");
    return size_t(slot);
  };
  for (int slot : inputs_) written[at(slot)] = true;
  for (const Step& step : steps_) {
    require(int(step.inputs.size()) == step.kernel->input_count(), "a step has another number of inputs than its kernel");
    for (int slot : step.inputs) require(written[at(memory_of_[at(slot)])], "a slot is read before it is written");
    for (int slot : step.outputs) {
      require(!written[at(slot)] && memory_of_[at(slot)] == slot, "a slot is written twice, or is in another one's memory");
      written[at(slot)] = true;
    }
  }
  for (int slot : outputs_) require(written[at(slot)] && std::count(inputs_.begin(), inputs_.end(), slot) == 0, "a result is not written by a step");
}

// The largest first, each at the lowest place where nothing is that lives at the same time.
void Plan::place(Layout& layout) const {
  std::vector<Life> lives;
  std::vector<int> of(size_t(slot_count_), -1);
  for (int i = 0; i < int(steps_.size()); i++) {
    for (int slot : steps_[size_t(i)].outputs) {
      if (std::count(outputs_.begin(), outputs_.end(), slot)) continue;
      of[size_t(slot)] = int(lives.size());
      lives.push_back({slot, i, i, (numel(layout.sizes[size_t(slot)]) + kAlign - 1) / kAlign * kAlign});
    }
    for (int slot : steps_[size_t(i)].inputs)
      if (const int life = of[size_t(memory_of_[size_t(slot)])]; life >= 0) lives[size_t(life)].last = i;
  }
  std::stable_sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.floats > b.floats; });
  layout.offsets.assign(size_t(slot_count_), -1);
  for (size_t i = 0; i < lives.size(); i++) {
    std::vector<std::pair<int64_t, int64_t>> taken;  // [begin, end)
    for (size_t j = 0; j < i; j++)
      if (lives[j].first <= lives[i].last && lives[i].first <= lives[j].last) {
        const int64_t begin = layout.offsets[size_t(lives[j].slot)];
        taken.emplace_back(begin, begin + lives[j].floats);
      }
    std::sort(taken.begin(), taken.end());
    int64_t place = 0;
    for (const auto& [begin, end] : taken) {
      if (place + lives[i].floats <= begin) break;
      place = std::max(place, end);
    }
    layout.offsets[size_t(lives[i].slot)] = place;
    layout.floats = std::max(layout.floats, place + lives[i].floats);
  }
}

// Calls memory(slot) for where the values of a slot that has memory of its own are.
template <class Memory>
void Plan::views(const Layout& layout, const Memory& memory, std::vector<View>& slots) const {
  slots.resize(size_t(slot_count_));
  for (int slot = 0; slot < slot_count_; slot++) {
    const size_t i = size_t(slot);
    slots[i] = {memory(memory_of_[i]), DType::f32, int(layout.sizes[i].size()), layout.sizes[i].data(), layout.strides[i].data()};
  }
}

void Plan::estimate(Layout& layout) const {
  std::vector<View> slots, inputs;
  views(layout, [](int) { return nullptr; }, slots);
  for (const Step& step : steps_) {
    inputs.clear();
    for (int slot : step.inputs) inputs.push_back(slots[size_t(slot)]);
    const double ns = step.kernel->estimate_ns(inputs.data());
    layout.alone.push_back(ns < kSmall_ns);
    layout.estimate_ns += ns;
  }
}

void Plan::admit(const std::vector<std::vector<int64_t>>& sizes) {
  if (sizes.size() != size_t(slot_count_)) throw std::invalid_argument("Plan.admit: sizes: needs those of every slot");
  Layout layout;
  layout.sizes = sizes;
  for (int slot = 0; slot < slot_count_; slot++) {
    layout.strides.push_back(contiguous(sizes[size_t(slot)]));
    if (numel(sizes[size_t(slot)]) != numel(sizes[size_t(memory_of_[size_t(slot)])])) throw std::invalid_argument("Plan.admit: sizes: a slot has another number of values than its memory");
  }
  place(layout);
  estimate(layout);
  std::vector<int64_t> key;
  for (int slot : inputs_) {
    key.push_back(int64_t(sizes[size_t(slot)].size()));
    key.insert(key.end(), sizes[size_t(slot)].begin(), sizes[size_t(slot)].end());
  }
  const std::unique_lock<std::shared_mutex> lock(mutex_);
  layouts_.emplace(std::move(key), std::move(layout));
}

const Plan::Layout& Plan::layout(const View* inputs) const {
  static thread_local std::vector<int64_t> key;
  key.clear();
  for (size_t i = 0; i < inputs_.size(); i++) {
    key.push_back(inputs[i].rank);
    key.insert(key.end(), inputs[i].sizes, inputs[i].sizes + inputs[i].rank);
  }
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  const auto found = layouts_.find(key);
  if (found == layouts_.end()) throw std::invalid_argument("Plan.run: inputs of these sizes were not admitted");
  return found->second;
}

void Plan::run(const View* inputs, const View* outputs, Lease& lease) const {
  const Layout& sizes = layout(inputs);
  const AlignedFloats own = own_arena(sizes.floats);
  float* const arena = own ? own.get() : plan_arena(sizes.floats);
  std::vector<View> slots, from, to;
  std::vector<void*> memory(size_t(slot_count_), nullptr);
  for (size_t slot = 0; slot < memory.size(); slot++)
    if (sizes.offsets[slot] >= 0) memory[slot] = arena + sizes.offsets[slot];
  for (size_t i = 0; i < inputs_.size(); i++) memory[size_t(inputs_[i])] = inputs[i].data;
  for (size_t i = 0; i < outputs_.size(); i++) memory[size_t(outputs_[i])] = outputs[i].data;
  views(sizes, [&](int slot) { return memory[size_t(slot)]; }, slots);
  Lease alone = lease.alone();
  for (size_t i = 0; i < steps_.size(); i++) {
    from.clear();
    to.clear();
    for (int slot : steps_[i].inputs) from.push_back(slots[size_t(slot)]);
    for (int slot : steps_[i].outputs) to.push_back(slots[size_t(slot)]);
    steps_[i].kernel->run(from.data(), to.data(), sizes.alone[i] ? alone : lease);
  }
}

int64_t Plan::packed_bytes() const {
  int64_t bytes = 0;
  for (const Step& step : steps_) bytes += step.kernel->packed_bytes();
  return bytes;
}

}  // namespace fastgraph
