#include "arena.h"

#include "aligned.h"

namespace fastgraph {
namespace {

struct Arena {
  AlignedFloats data{nullptr, free};
  int64_t size = 0;

  float* at_least(int64_t floats) {
    if (size < floats) {
      data.reset();
      size = 0;
      const int64_t larger = (floats + 1023) / 1024 * 1024;
      data = aligned_floats(larger);
      size = larger;
    }
    return data.get();
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
