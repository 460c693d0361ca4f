// Scratch memory in place of kernels/cpu/arena.cpp: each request has its own block of exactly its size, filled with NaN, so
// that AddressSanitizer sees a request that was too small and a result that used what was never written is NaN.
#include "../../kernels/cpu/arena.h"

#include <stdlib.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <new>

namespace fastgraph {

std::atomic<int> threads_with_scratch{0};

namespace {

using Block = std::unique_ptr<float, void (*)(void*)>;

float* renew(Block& block, int64_t floats) {
  void* data = nullptr;
  if (posix_memalign(&data, 64, size_t(floats) * sizeof(float)) != 0) throw std::bad_alloc();
  block.reset(static_cast<float*>(data));
  for (int64_t i = 0; i < floats; i++) block.get()[i] = NAN;
  return block.get();
}

}  // namespace

float* thread_arena(int64_t floats) {
  static thread_local Block block(nullptr, free);
  static thread_local const int thread = threads_with_scratch++;
  (void)thread;
  return renew(block, floats);
}

float* plan_arena(int64_t floats) {
  static thread_local Block block(nullptr, free);
  return renew(block, floats);
}

}  // namespace fastgraph
