#include "arena.h"

#include <stdlib.h>

#include <new>

namespace fastgraph {
namespace {

struct Arena {
  float* data = nullptr;
  int64_t size = 0;
  ~Arena() { free(data); }

  float* at_least(int64_t floats) {
    if (size < floats) {
      free(data);
      data = nullptr;
      size = 0;
      const int64_t larger = (floats + 1023) / 1024 * 1024;
      void* memory = nullptr;
      if (posix_memalign(&memory, 64, size_t(larger) * sizeof(float)) != 0) throw std::bad_alloc();
      data = static_cast<float*>(memory);
      size = larger;
    }
    return data;
  }
};

}  // namespace

float* thread_arena(int64_t floats) {
  static thread_local Arena arena;
  return arena.at_least(floats);
}

float* plan_arena(int64_t floats) {
  static thread_local Arena arena;
  return arena.at_least(floats);
}

}  // namespace fastgraph
