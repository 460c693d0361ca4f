// A program of kernels over one arena: a whole network, or a stretch of one between two operators of torch, in one call.
//
// Values are numbered slots, each with sizes and strides. Inputs and results are the caller's memory, constants are somebody's for good;
// what lies between is in an arena of the calling thread, buffers that do not live at the same time in the same place. A slot may lie in
// another one's memory: the same values in another shape, or a part of a concatenation. What is decided by sizes (layouts, and which kernels
// run at all) is decided outside, once for each shape of the inputs, for which there then is a program.
#pragma once

#include <stdint.h>

#include <map>
#include <shared_mutex>
#include <vector>

#include "../cpu/kernel.h"

namespace fastgraph {

class Plan : public Kernel {
 public:
  struct Slot {
    std::vector<int64_t> sizes, strides;
    int memory;            // the slot itself, or the one in whose memory it lies
    int64_t offset;        // from where that one's first value is, in floats
    const float* constant;  // the values, where they are the same in every call; else null
  };
  struct Step {
    const Kernel* kernel;  // outlives the plan
    std::vector<int> inputs, outputs;  // slots
  };
  struct Program {
    std::vector<Slot> slots;
    std::vector<int> inputs, outputs;
    std::vector<Step> steps;
  };

  explicit Plan(int input_count) : input_count_(input_count) {}

  // From now on fp32 inputs of the sizes that the program's input slots have are taken. std::invalid_argument where a slot is read before it
  // is written, written twice, reaches beyond the memory that it lies in, or is a result in another one's memory. No slot is empty.
  void admit(Program program);

  int input_count() const override { return input_count_; }

  using Kernel::run;

  // Inputs as admitted: std::invalid_argument for others.
  double estimate_ns(const View* inputs) const override { return layout(inputs).estimate_ns; }
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override;
  // Of the arena, for inputs of admitted sizes.
  int64_t arena_bytes(const View* inputs) const { return layout(inputs).floats * int64_t(sizeof(float)); }

 private:
  struct Layout : Program {
    std::vector<int64_t> places;  // of slots, in the arena, in floats; -1 where one is not in it
    int64_t floats = 0;
    std::vector<bool> alone;  // for each step: so small a job that handing it out costs more
    double estimate_ns = 0;
  };

  static void place(Layout& layout);
  static void estimate(Layout& layout);
  const Layout& layout(const View* inputs) const;

  int input_count_;
  mutable std::shared_mutex mutex_;
  std::map<std::vector<int64_t>, Layout> layouts_;  // by ranks and sizes of the inputs; nothing is ever taken out
};

}  // namespace fastgraph
