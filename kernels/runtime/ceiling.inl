// The ceiling's loops on F16, compiled once per ISA.
#include "../cpu/simd/simd.h"
#include "ceiling.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

constexpr int64_t kFmaFlops = kFmaChains * kLanes * 2;

template <int N>
FASTGRAPH_INLINE float total(const F16 (&chains)[N]) {
  float lanes[kLanes], sum = 0;
  for (int i = 0; i < N; i++) {
    store(lanes, chains[i]);
    for (int lane = 0; lane < kLanes; lane++) sum += lanes[lane];
  }
  return sum;
}

float fma_f32(int64_t iterations, const float* seed) {
  F16 sum[kFmaChains];
  for (int i = 0; i < kFmaChains; i++) sum[i] = load(seed + i * kLanes);
  const F16 left = load(seed), right = load(seed + kLanes);
  for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 16
    for (int i = 0; i < kFmaChains; i++) sum[i] = fma(left, right, sum[i]);
  return total(sum);
}

float read(const float* data, int64_t floats) {
  static_assert(kReadFloats % (kReadChains * kLanes) == 0, "whole steps");
  F16 sum[kReadChains];
  for (int i = 0; i < kReadChains; i++) sum[i] = broadcast(0.0f);
  for (int64_t at = 0; at < floats; at += kReadChains * kLanes)
#pragma GCC unroll 8
    for (int i = 0; i < kReadChains; i++) sum[i] = add(sum[i], load(data + at + i * kLanes));
  return total(sum);
}

#if defined(FASTGRAPH_HAS_DOT)
// Each instruction adds two products to each lane.
constexpr int64_t kDotFlops = kFmaChains * kLanes * 4;

float dot_bf16(int64_t iterations, const float* seed) {
  __m512 sum[kFmaChains];
  for (int i = 0; i < kFmaChains; i++) sum[i] = _mm512_loadu_ps(seed + i * kLanes);
  const __m512bh left = __m512bh(_mm512_loadu_si512(seed)), right = __m512bh(_mm512_loadu_si512(seed + kLanes));
  for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 16
    for (int i = 0; i < kFmaChains; i++) sum[i] = _mm512_dpbf16_ps(sum[i], left, right);
  F16 all[kFmaChains];
  for (int i = 0; i < kFmaChains; i++) all[i].v = sum[i];
  return total(all);
}
#endif

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
