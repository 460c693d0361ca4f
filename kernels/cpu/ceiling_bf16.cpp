// The bf16 dot product of the instruction set "avx512_bf16", compiled with its flags (CMakeLists.txt).
#include <immintrin.h>
#include <stdint.h>

namespace fastgraph {

constexpr int kDotChains = 16;

// Multiplications and additions of one iteration: each instruction adds 2 products to each of 16 lanes.
extern const int64_t ceiling_dot_flops;
const int64_t ceiling_dot_flops = kDotChains * 16 * 4;

float ceiling_dot_bf16(int64_t iterations, const float* seed) {
  __m512 sum[kDotChains];
  for (int i = 0; i < kDotChains; i++) sum[i] = _mm512_loadu_ps(seed + i * 16);
  const __m512bh left = (__m512bh)_mm512_loadu_si512(seed), right = (__m512bh)_mm512_loadu_si512(seed + 16);
  for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 16
    for (int i = 0; i < kDotChains; i++) sum[i] = _mm512_dpbf16_ps(sum[i], left, right);
  float lanes[16], total = 0;
  for (int i = 0; i < kDotChains; i++) {
    _mm512_storeu_ps(lanes, sum[i]);
    for (float lane : lanes) total += lane;
  }
  return total;
}

}  // namespace fastgraph
