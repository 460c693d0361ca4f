// What this machine can do at most, measured by loops that do nothing else: fused multiply-adds from registers, dot
// products in bf16, and reading. The bench puts its figures beside these (bench/ceilings/measured.py).
#pragma once

#include <stdint.h>

#include <vector>

#include "../cpu/aligned.h"

namespace fastgraph {

// A row of the family ceiling: the loops of one instruction set. Each returns something that depends on all of its work.
struct CeilingKernels {
  // `iterations` times one fused multiply-add on each of the accumulators; seed holds 16 floats an accumulator.
  float (*fma_f32)(int64_t iterations, const float* seed);
  int64_t fma_flops;  // of one iteration
  // Reads `floats` floats, a multiple of kReadFloats, from a 64-byte boundary.
  float (*read)(const float* data, int64_t floats);
  // As fma_f32, with dot products of pairs of bf16; null where there are none.
  float (*dot_bf16)(int64_t iterations, const float* seed);
  int64_t dot_flops;
};

constexpr int64_t kReadFloats = 256;

// How many times as many operations a second dot_bf16 does as fma_f32, the best of some rounds of a few microseconds each.
double dot_against_fma(const CeilingKernels& kernels);

class Ceiling {
 public:
  explicit Ceiling(int threads);
  Ceiling(const Ceiling&) = delete;
  Ceiling& operator=(const Ceiling&) = delete;

  // Operations or bytes a second, all threads together, over about so many seconds, with the loops in use.
  double fma_f32(double seconds);
  double dot_bf16(double seconds);  // 0 where there is no such instruction
  // Each thread reads its own `bytes` again and again: the size decides which cache they come from.
  double read(int64_t bytes, double seconds);

 private:
  template <class Work>
  double rate(double seconds, const Work& work);
  void grow(int64_t floats);

  int threads_;
  int64_t floats_ = 0;
  std::vector<AlignedFloats> buffers_;  // one a thread
};

}  // namespace fastgraph
