// One instruction of a Pointwise program on a block of values.
#pragma once

#include "cpu.h"
#include "functions.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

FASTGRAPH_INLINE F16 vector_at(Operand a, int64_t i) { return load(a.values + (i & a.mask)); }

template <int kReads, class Function>
FASTGRAPH_INLINE void map(Operand a, Operand b, Operand c, float* y, int64_t n, const Function& function) {
  const F16 unused = broadcast(0.0f);
  for (int64_t i = 0; i < n; i += kLanes)
    store(y + i, function(vector_at(a, i), kReads > 1 ? vector_at(b, i) : unused, kReads > 2 ? vector_at(c, i) : unused));
}

// Lanes beyond kLargestAngle, which are few, as libm has them.
FASTGRAPH_INLINE void map_sine(Operand a, float* y, int64_t n, bool is_cosine) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const F16 x = vector_at(a, i);
    float angle[kLanes], result[kLanes];
    store(angle, x);
    store(result, sine(x, is_cosine));
    for (int lane = 0; lane < kLanes; lane++)
      if (!(__builtin_fabsf(angle[lane]) <= kLargestAngle)) result[lane] = is_cosine ? __builtin_cosf(angle[lane]) : __builtin_sinf(angle[lane]);
    store(y + i, load(result));
  }
}

FASTGRAPH_INLINE bool has_large_angle(Operand a, int64_t n) {
  F16 largest = broadcast(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) largest = bits_max(largest, absolute(vector_at(a, i)));
  return !(fold_bits_max(largest) <= kLargestAngle);
}

void apply_instruction(const Instruction& instruction, Operand a, Operand b, Operand c, float* y, int64_t n) {
  const float p = instruction.p, q = instruction.q;
  const Opcode opcode = instruction.opcode;
  if ((opcode == Opcode::sin || opcode == Opcode::cos) && has_large_angle(a, n)) return map_sine(a, y, n, opcode == Opcode::cos);
  if (opcode == Opcode::activation)
    return with_function({static_cast<Activation>(instruction.reads[1]), p, q}, [&](const auto& function) {
      for (int64_t i = 0; i < n; i += kLanes) store(y + i, function(vector_at(a, i)));
    });
  switch (opcode) {
#define FASTGRAPH_CASE(name, reads, time, ...)                                                                   \
  case Opcode::name:                                                                                             \
    return map<reads>(a, b, c, y, n, [&]([[maybe_unused]] F16 a, [[maybe_unused]] F16 b, [[maybe_unused]] F16 c) \
                                         __attribute__((always_inline)) { return (__VA_ARGS__); });
    FASTGRAPH_POINTWISE(FASTGRAPH_CASE)
#undef FASTGRAPH_CASE
  }
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
