// Scratch memory in place of kernels/cpu/arena.cpp: each request has its own block of exactly its size, filled with NaN, so
// that AddressSanitizer sees a request that was too small and a result that used what was never written is NaN.
#include "../../kernels/cpu/arena.h"

#include <atomic>
#include <cmath>

#include "../../kernels/cpu/aligned.h"

namespace fastgraph {

std::atomic<int> threads_with_scratch{0};

namespace {

float* renew(AlignedFloats& block, int64_t floats) {
  block = aligned_floats(floats);
  for (int64_t i = 0; i < floats; i++) block.get()[i] = NAN;
  return block.get();
}

}  // namespace

float* thread_arena(int64_t floats) {
  static thread_local AlignedFloats block(nullptr, free);
  static thread_local const int thread = threads_with_scratch++;
  (void)thread;
  return renew(block, floats);
}

float* plan_arena(int64_t floats) {
  static thread_local AlignedFloats block(nullptr, free);
  return renew(block, floats);
}

}  // namespace fastgraph
