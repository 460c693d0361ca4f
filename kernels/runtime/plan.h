// A program of kernels over one arena: a whole network, or a stretch of one between two operators of torch, in one call.
//
// Values are numbered slots. Inputs and results are the caller's memory; what lies between is in an arena of the calling thread, buffers
// that do not live at the same time in the same place. Sizes of all slots come from outside, once for each shape of the inputs.
#pragma once

#include <stdint.h>

#include <map>
#include <shared_mutex>
#include <vector>

#include "../cpu/kernel.h"

namespace fastgraph {

class Plan : public Kernel {
 public:
  struct Step {
    const Kernel* kernel;  // outlives the plan
    std::vector<int> inputs, outputs;  // slots
  };

  // Slots are 0, 1, ... slot_count - 1. memory_of[slot] is the slot itself, or an earlier one whose values it shows in another shape.
  // std::invalid_argument where a slot is read before it is written, written twice, or is a result in another one's memory.
  Plan(int slot_count, std::vector<int> inputs, std::vector<int> outputs, std::vector<Step> steps, std::vector<int> memory_of);

  // From now on takes fp32 inputs of these sizes; sizes[slot] are those of every slot.
  void admit(const std::vector<std::vector<int64_t>>& sizes);

  int input_count() const override { return int(inputs_.size()); }

  using Kernel::run;

  // Inputs contiguous, of admitted sizes: std::invalid_argument for others.
  double estimate_ns(const View* inputs) const override { return layout(inputs).estimate_ns; }
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override;
  // Of the arena, for inputs of admitted sizes.
  int64_t arena_bytes(const View* inputs) const { return layout(inputs).floats * int64_t(sizeof(float)); }

 private:
  using Sizes = std::vector<std::vector<int64_t>>;
  struct Layout {
    Sizes sizes, strides;          // of every slot
    std::vector<int64_t> offsets;  // in the arena, in floats; -1 where a slot is not in it
    int64_t floats = 0;
    std::vector<bool> alone;  // for each step: so small a job that handing it out costs more
    double estimate_ns = 0;
  };

  void check() const;
  void place(Layout& layout) const;
  void estimate(Layout& layout) const;
  const Layout& layout(const View* inputs) const;
  template <class Memory>
  void views(const Layout& layout, const Memory& memory, std::vector<View>& slots) const;

  int slot_count_;
  std::vector<int> inputs_, outputs_;
  std::vector<Step> steps_;
  std::vector<int> memory_of_;
  mutable std::shared_mutex mutex_;
  std::map<std::vector<int64_t>, Layout> layouts_;  // by ranks and sizes of the inputs; nothing is ever taken out
};

}  // namespace fastgraph
