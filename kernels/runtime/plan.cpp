#include "plan.h"

#include <algorithm>
#include <mutex>
#include <set>
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

// From a slot's first value to behind its last one.
int64_t extent(const Plan::Slot& slot) {
  int64_t last = 0;
  for (size_t i = 0; i < slot.sizes.size(); i++) last += (slot.sizes[i] - 1) * slot.strides[i];
  return last + 1;
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("Plan.admit: ") + what);
}

void check_slots(const std::vector<Plan::Slot>& slots) {
  for (size_t i = 0; i < slots.size(); i++) {
    const Plan::Slot& slot = slots[i];
    require(slot.sizes.size() == slot.strides.size(), "a slot needs as many strides as sizes");
    require(std::all_of(slot.sizes.begin(), slot.sizes.end(), [](int64_t size) { return size > 0; }), "a slot is empty");
    require(slot.memory >= 0 && size_t(slot.memory) < slots.size(), "a slot's memory is out of range");
    const Plan::Slot& owner = slots[size_t(slot.memory)];
    require(size_t(owner.memory) == size_t(slot.memory), "a slot's memory is another one's");
    require(slot.offset >= 0 && (size_t(slot.memory) == i ? slot.offset == 0 : slot.offset + extent(slot) <= extent(owner)),
            "a slot reaches beyond the memory that it lies in");
  }
}

void check(const Plan::Program& program) {
  const std::vector<Plan::Slot>& slots = program.slots;
  check_slots(slots);
  std::vector<bool> written(slots.size(), false), holds(slots.size(), false);  // by a step; anything, as memory
  const auto at = [&](int slot) {
    require(slot >= 0 && size_t(slot) < slots.size(), "a slot is out of range");
    return size_t(slot);
  };
  const auto memory = [&](int slot) { return size_t(slots[at(slot)].memory); };
  for (int slot : program.inputs) holds[memory(slot)] = true;
  for (size_t i = 0; i < slots.size(); i++)
    if (slots[i].constant) holds[i] = true;
  for (const Plan::Step& step : program.steps) {
    require(int(step.inputs.size()) == step.kernel->input_count(), "a step has another number of inputs than its kernel");
    for (int slot : step.inputs) require(holds[memory(slot)], "a slot is read before it is written");
    for (int slot : step.outputs) {
      require(!written[at(slot)], "a slot is written twice");
      require(slots[memory(slot)].constant == nullptr, "a constant is written");
      written[at(slot)] = holds[memory(slot)] = true;
    }
  }
  for (int slot : program.outputs) {
    require(size_t(slot) == memory(slot), "a result is in another one's memory");
    require(holds[at(slot)] && std::count(program.inputs.begin(), program.inputs.end(), slot) == 0, "a result is not written by a step");
  }
}

// Steps between which memory holds a value that is still wanted.
struct Life {
  int slot, first, last;
  int64_t floats;
};

std::vector<int64_t> key_of(const Plan::Program& program) {
  std::vector<int64_t> key;
  for (int slot : program.inputs) {
    const std::vector<int64_t>& sizes = program.slots[size_t(slot)].sizes;
    key.push_back(int64_t(sizes.size()));
    key.insert(key.end(), sizes.begin(), sizes.end());
  }
  return key;
}

// memory(slot): where the values of a slot that has memory of its own are.
template <class Memory>
void views(const Plan::Program& program, const Memory& memory, std::vector<View>& slots) {
  slots.resize(program.slots.size());
  for (size_t i = 0; i < slots.size(); i++) {
    const Plan::Slot& slot = program.slots[i];
    slots[i] = {memory(slot.memory) + slot.offset, DType::f32, int(slot.sizes.size()), slot.sizes.data(), slot.strides.data()};
  }
}

// What a step reads and writes.
void views_of(const Plan::Step& step, const std::vector<View>& slots, std::vector<View>& from, std::vector<View>& to) {
  from.clear();
  to.clear();
  for (int slot : step.inputs) from.push_back(slots[size_t(slot)]);
  for (int slot : step.outputs) to.push_back(slots[size_t(slot)]);
}

}  // namespace

// The largest first, each at the lowest place where nothing is that lives at the same time.
void Plan::place(Layout& layout) {
  std::vector<Life> lives;
  const std::set<int> results(layout.outputs.begin(), layout.outputs.end()), inputs(layout.inputs.begin(), layout.inputs.end());
  std::vector<int> of(layout.slots.size(), -1);
  for (int i = 0; i < int(layout.steps.size()); i++) {
    const auto lives_at = [&](int slot) {
      const int memory = layout.slots[size_t(slot)].memory;
      const Slot& owner = layout.slots[size_t(memory)];
      if (owner.constant || results.count(memory) || inputs.count(memory)) return;
      int& life = of[size_t(memory)];
      if (life < 0) {
        life = int(lives.size());
        lives.push_back({memory, i, i, (extent(owner) + kAlign - 1) / kAlign * kAlign});
      }
      lives[size_t(life)].last = i;
    };
    for (int slot : layout.steps[size_t(i)].inputs) lives_at(slot);
    for (int slot : layout.steps[size_t(i)].outputs) lives_at(slot);
  }
  std::stable_sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.floats > b.floats; });
  layout.places.assign(layout.slots.size(), -1);
  for (size_t i = 0; i < lives.size(); i++) {
    std::vector<std::pair<int64_t, int64_t>> taken;  // [begin, end)
    for (size_t j = 0; j < i; j++)
      if (lives[j].first <= lives[i].last && lives[i].first <= lives[j].last) {
        const int64_t begin = layout.places[size_t(lives[j].slot)];
        taken.emplace_back(begin, begin + lives[j].floats);
      }
    std::sort(taken.begin(), taken.end());
    int64_t place = 0;
    for (const auto& [begin, end] : taken) {
      if (place + lives[i].floats <= begin) break;
      place = std::max(place, end);
    }
    layout.places[size_t(lives[i].slot)] = place;
    layout.floats = std::max(layout.floats, place + lives[i].floats);
  }
}

void Plan::estimate(Layout& layout) {
  std::vector<View> slots, from, to;
  views(layout, [](int) { return static_cast<float*>(nullptr); }, slots);
  for (const Step& step : layout.steps) {
    views_of(step, slots, from, to);
    const double ns = step.kernel->estimate_ns(from.data());
    layout.alone.push_back(ns < kSmall_ns);
    layout.estimate_ns += ns;
  }
}

void Plan::admit(Program program) {
  if (program.inputs.size() != size_t(input_count_)) throw std::invalid_argument("Plan.admit: inputs: needs " + std::to_string(input_count_) + " slots");
  check(program);
  std::vector<int64_t> key = key_of(program);
  Layout layout;
  static_cast<Program&>(layout) = std::move(program);
  place(layout);
  estimate(layout);
  const std::unique_lock<std::shared_mutex> lock(mutex_);
  layouts_.emplace(std::move(key), std::move(layout));
}

const Plan::Layout& Plan::layout(const View* inputs) const {
  static thread_local std::vector<int64_t> key;
  key.clear();
  for (int i = 0; i < input_count_; i++) {
    key.push_back(inputs[i].rank);
    key.insert(key.end(), inputs[i].sizes, inputs[i].sizes + inputs[i].rank);
  }
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  const auto found = layouts_.find(key);
  if (found == layouts_.end()) throw std::invalid_argument("Plan.run: inputs of these sizes were not admitted");
  return found->second;
}

void Plan::run(const View* inputs, const View* outputs, Lease& lease) const {
  const Layout& program = layout(inputs);
  const AlignedFloats own = own_arena(program.floats);
  float* const arena = own ? own.get() : plan_arena(program.floats);
  std::vector<View> slots, from, to;
  std::vector<float*> memory(program.slots.size(), nullptr);
  for (size_t slot = 0; slot < memory.size(); slot++) {
    if (program.places[slot] >= 0) memory[slot] = arena + program.places[slot];
    else memory[slot] = const_cast<float*>(program.slots[slot].constant);
  }
  for (size_t i = 0; i < program.inputs.size(); i++) memory[size_t(program.inputs[i])] = static_cast<float*>(inputs[i].data);
  for (size_t i = 0; i < program.outputs.size(); i++) memory[size_t(program.outputs[i])] = static_cast<float*>(outputs[i].data);
  views(program, [&](int slot) { return memory[size_t(slot)]; }, slots);
  Lease alone = lease.alone();
  for (size_t i = 0; i < program.steps.size(); i++) {
    views_of(program.steps[i], slots, from, to);
    program.steps[i].kernel->run(from.data(), to.data(), program.alone[i] ? alone : lease);
  }
}

int64_t Plan::packed_bytes() const {
  std::set<const Kernel*> kernels;
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  for (const auto& [key, layout] : layouts_)
    for (const Step& step : layout.steps) kernels.insert(step.kernel);
  int64_t bytes = 0;
  for (const Kernel* kernel : kernels) bytes += kernel->packed_bytes();
  return bytes;
}

}  // namespace fastgraph
