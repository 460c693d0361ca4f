// Sixteen floats, whatever the instruction set: one AVX-512 register, two AVX2
// registers, or a plain array. Every kernel is written on `F16` alone, so one
// source serves every ISA and a lane's arithmetic is the same in all of them:
// IEEE single precision, fused multiply-add, round to nearest even.
//
// An instruction set is a file here. This one is compiled once for each with its flags (see CMakeLists.txt);
// everything lives in an ISA's own namespace and nothing here comes from the
// standard library's templates, so that no AVX-512 copy of a shared inline
// function can be linked into code that runs on an older machine.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BF16__)
#define FASTGRAPH_ISA avx512_bf16
#elif defined(__AVX512F__)
#define FASTGRAPH_ISA avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTGRAPH_ISA avx2
#else
#define FASTGRAPH_ISA scalar
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Everything is inlined, except where a sanitizer would make functions of that size slow to compile (tests/native/).
#if defined(FASTGRAPH_NO_INLINE)
#define FASTGRAPH_INLINE [[maybe_unused]] static inline
#define FASTGRAPH_INLINE_MEMBER inline
#else
#define FASTGRAPH_INLINE static inline __attribute__((always_inline))
#define FASTGRAPH_INLINE_MEMBER inline __attribute__((always_inline))
#endif

namespace fastgraph {
namespace FASTGRAPH_ISA {

constexpr int kLanes = 16;

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph

#if defined(__AVX512F__)
#include "avx512.h"
#if defined(__AVX512BF16__)
#include "avx512_bf16.h"
#endif
#elif defined(__AVX2__) && defined(__FMA__)
#include "avx2.h"
#else
#include "scalar.h"
#endif

namespace fastgraph {
namespace FASTGRAPH_ISA {

#if !defined(FASTGRAPH_HAS_HALVES)
FASTGRAPH_INLINE void load_pairs(const float* p, F16* even, F16* odd) { deinterleave(load(p), load(p + kLanes), even, odd); }

using Factor = F16;  // what many values are multiplied by
FASTGRAPH_INLINE Factor factor(const float* p) { return load(p); }

// sum[i][v] += left[i] * right for all i; `right` is sixteen floats in memory.
template <int R, int V>
FASTGRAPH_INLINE void fma_column(const F16 (&left)[R], const float* right, int v, F16 (&sum)[R][V]) {
  const F16 x = load(right);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sum[i][v] = fma(left[i], x, sum[i][v]);
}
#endif

FASTGRAPH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
