// The ceiling's loops on F16, compiled once per ISA.
#include "ceiling.h"
#include "simd.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// As many chains as hide the latency on two pipes (4 or 5 cycles each) and fit the register file beside two operands.
#if defined(__AVX512F__)
constexpr int kFmaChains = 16;
constexpr int kReadChains = 8;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kFmaChains = 6;  // two registers each
constexpr int kReadChains = 4;
#else
constexpr int kFmaChains = 4;
constexpr int kReadChains = 4;
#endif

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

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
