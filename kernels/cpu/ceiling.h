// What this machine can do at most, measured by loops that do nothing else: fused multiply-adds from registers, dot
// products in bf16, and reading. The bench puts its figures beside these (bench/ceilings/measured.py).
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

namespace fastgraph {

// The loops of one instruction set. Each returns something that depends on all of its work.
struct CeilingKernels {
  const char* isa;
  // `iterations` times one fused multiply-add on each of the accumulators; seed holds 16 floats an accumulator.
  float (*fma_f32)(int64_t iterations, const float* seed);
  int64_t fma_flops;  // of one iteration
  // Reads `floats` floats, a multiple of kReadFloats, from a 64-byte boundary.
  float (*read)(const float* data, int64_t floats);
};

constexpr int64_t kReadFloats = 256;

class Ceiling {
 public:
  explicit Ceiling(int threads);
  Ceiling(const Ceiling&) = delete;
  Ceiling& operator=(const Ceiling&) = delete;

  // Operations or bytes a second, all threads together, over about so many seconds, with the loops of isa().
  double fma_f32(double seconds);
  double dot_bf16(double seconds);  // 0 where isa() has no such instruction
  // Each thread reads its own `bytes` again and again: the size decides which cache they come from.
  double read(int64_t bytes, double seconds);

 private:
  template <class Work>
  double rate(double seconds, const Work& work);
  void grow(int64_t floats);

  int threads_;
  int64_t floats_ = 0;
  std::vector<std::unique_ptr<float, void (*)(void*)>> buffers_;  // one a thread
};

}  // namespace fastgraph
