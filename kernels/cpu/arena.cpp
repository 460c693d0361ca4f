#include "arena.h"

#include <stdlib.h>

#include <new>

namespace fastgraph {
namespace {

struct Arena {
  float* data = nullptr;
  int64_t size = 0;
  ~Arena() { free(data); }
};

}  // namespace

float* thread_arena(int64_t floats) {
  static thread_local Arena arena;
  if (arena.size < floats) {
    free(arena.data);
    arena.data = nullptr;
    arena.size = 0;
    const int64_t size = (floats + 1023) / 1024 * 1024;
    void* data = nullptr;
    if (posix_memalign(&data, 64, size_t(size) * sizeof(float)) != 0) throw std::bad_alloc();
    arena.data = static_cast<float*>(data);
    arena.size = size;
  }
  return arena.data;
}

}  // namespace fastgraph
