// Memory for vectors.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>

namespace fastgraph {

using AlignedFloats = std::unique_ptr<float, void (*)(void*)>;

// At least `floats` floats on a boundary of so many bytes, a cache line where nothing is said.
inline AlignedFloats aligned_floats(int64_t floats, size_t boundary = 64) {
  void* data = nullptr;
  if (posix_memalign(&data, boundary, size_t(floats > 0 ? floats : 1) * sizeof(float)) != 0) throw std::bad_alloc();
  return {static_cast<float*>(data), free};
}

}  // namespace fastgraph
