// Pointwise on the CPU: a chain of elementwise operations with broadcasting, in one pass over memory.
#pragma once

#include <stdint.h>

#include <array>
#include <string>
#include <vector>

#include "../cpu/activation.h"
#include "../cpu/aligned.h"
#include "../cpu/kernel.h"
#include "loops.h"

namespace fastgraph {

// Every operation: E(name, registers that it reads, time of sixteen values in quarters of a nanosecond on Zen 5, what it computes). The registers' values
// are the vectors a, b, c, its numbers the floats p and q. Numbers of operations are the order of this list, and part of the binding: OPCODES in op.py.
#define FASTGRAPH_POINTWISE(E)                                                           \
  E(add, 2, 2, fma(broadcast(p), b, a))                        /* torch's alpha is p */  \
  E(sub, 2, 2, fma(broadcast(-p), b, a))                                                 \
  E(mul, 2, 2, mul(a, b))                                                                \
  E(div, 2, 6, div(a, b))                                                                \
  E(maximum, 2, 2, maximum(a, b))                                                        \
  E(minimum, 2, 2, minimum(a, b))                                                        \
  E(greater, 2, 2, greater(a, b))                              /* 1 or 0 */              \
  E(greater_equal, 2, 3, greater_equal(a, b))                                            \
  E(equal, 2, 4, equal(a, b))                                                            \
  E(not_equal, 2, 4, not_equal(a, b))                                                    \
  E(add_scalar, 1, 2, add(a, broadcast(p)))                                              \
  E(mul_scalar, 1, 2, mul(a, broadcast(p)))                                              \
  E(div_scalar, 1, 6, div(a, broadcast(p)))                                              \
  E(rsub_scalar, 1, 2, sub(broadcast(p), a))                   /* p - a */               \
  E(greater_scalar, 1, 2, greater(a, broadcast(p)))                                      \
  E(greater_equal_scalar, 1, 3, greater_equal(a, broadcast(p)))                          \
  E(less_scalar, 1, 2, greater(broadcast(p), a))                                         \
  E(less_equal_scalar, 1, 3, greater_equal(broadcast(p), a))                             \
  E(equal_scalar, 1, 4, equal(a, broadcast(p)))                                          \
  E(not_equal_scalar, 1, 4, not_equal(a, broadcast(p)))                                  \
  E(where, 3, 3, choose(a, b, c))                              /* b where a is not 0 */  \
  E(addcmul, 3, 3, fma(mul(broadcast(p), b), c, a))            /* as torch rounds */     \
  E(addcdiv, 3, 7, add(a, div(mul(broadcast(p), b), c)))                                 \
  E(prelu, 2, 3, prelu(a, b))                                  /* b is the slope */      \
  E(abs, 1, 2, absolute(a))                                                              \
  E(neg, 1, 2, negate(a))                                                                \
  E(square, 1, 2, mul(a, a))                                                             \
  E(cube, 1, 2, mul(mul(a, a), a))                                                       \
  E(sqrt, 1, 8, square_root(a))                                                          \
  E(rsqrt, 1, 14, div(broadcast(1.0f), square_root(a)))                                  \
  E(reciprocal, 1, 6, div(broadcast(1.0f), a))                                           \
  E(floor, 1, 2, floor(a))                                                               \
  E(ceil, 1, 3, ceil(a))                                                                 \
  E(round, 1, 2, round(a))                                     /* halves to even */      \
  E(exp, 1, 12, exp(a))                                                                  \
  E(expm1, 1, 32, expm1_everywhere(a))                                                   \
  E(log, 1, 24, log(a))                                                                  \
  E(log1p, 1, 32, log1p(a))                                                              \
  E(erf, 1, 28, erf(a))                                                                  \
  E(sin, 1, 36, sine(a, false))                                                          \
  E(cos, 1, 36, sine(a, true))                                                           \
  E(activation, 1, 0, a)                                       /* b is its number, in place of a register */

enum class Opcode : int {
#define FASTGRAPH_NAME(name, ...) name,
  FASTGRAPH_POINTWISE(FASTGRAPH_NAME)
#undef FASTGRAPH_NAME
};

struct Instruction {
  Opcode opcode;
  std::array<int, 3> reads;  // registers; those that the operation has not are ignored
  float p, q;
};

// Values of a register: in order, or where `step` is 0 the same sixteen again and again.
struct Operand {
  const float* values;
  int64_t mask;  // of an index: all bits or none
};

struct PointwiseKernels {
  // y[0 .. n) = what the instruction computes of a, b and c; n is a multiple of 16. y may be one of them.
  void (*apply)(const Instruction& instruction, Operand a, Operand b, Operand c, float* y, int64_t n);
};

class Pointwise : public Kernel {
 public:
  static constexpr int kMaxInputs = 8, kMaxConstants = 8;

  // [count] values, taken along one axis of the result; one value everywhere
  struct Constant {
    const float* values;
    int64_t count;
  };

  // Registers are numbered: the inputs, the constants, then one for each instruction, the last being the result. `axis` is the one of the
  // result that constants lie along; below zero it counts from the end. std::invalid_argument for a program that cannot be run.
  Pointwise(std::vector<Instruction> program, int inputs, const std::vector<Constant>& constants, int axis, const PointwiseKernels& kernels);

  static std::vector<std::string> opcodes();

  int input_count() const override { return inputs_; }

  using Kernel::run;

  // fp32 inputs with any strides; where they have fewer axes than the result or a size of 1, they are broadcast.
  double estimate_ns(const View* inputs) const override;
  void run(const View* inputs, const View* outputs, Lease& lease) const override;

  int64_t packed_bytes() const override { return storage_floats_ * int64_t(sizeof(float)); }

 private:
  static constexpr int kMaxOperands = 1 + kMaxInputs + kMaxConstants;  // the result first
  using OperandLoops = Loops<kMaxOperands>;
  class Tiles;

  void check() const;
  void assign_buffers();
  int operand_count() const { return inputs_ + int(constants_.size()); }

  std::vector<Instruction> program_;
  int inputs_;
  int axis_;
  std::vector<Constant> constants_;  // in storage_
  AlignedFloats storage_;
  int64_t storage_floats_ = 0;
  std::vector<int> buffer_of_;  // for each instruction: the scratch that it writes, used again when its value is not wanted any more
  int buffers_ = 0;
  double ns_per_value_ = 0;
  const PointwiseKernels& kernels_;
};

}  // namespace fastgraph
