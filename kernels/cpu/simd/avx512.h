// F16 as one AVX-512 register.
#pragma once

#include "eight_avx.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {

// The register tile: rows of the largest, and vectors beside so many rows: as many accumulators as the register file holds
// beside the operands (24 of 32).
constexpr int kTileRows = 8;
constexpr int kTileVectors[kTileRows + 1] = {0, 8, 8, 8, 6, 4, 4, 3, 3};
constexpr int kRegisters = 1;  // in one F16

// Chains that hide the latency of a multiply-add on two pipes (4 or 5 cycles each), and of a load.
constexpr int kFmaChains = 16;
constexpr int kReadChains = 8;

struct F16 { __m512 v; };
struct Mask { __mmask16 m; };

FASTGRAPH_INLINE F16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
FASTGRAPH_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
// In a register from here on: GCC would rather read it again for each of several uses.
FASTGRAPH_INLINE F16 keep(F16 a) {
  asm("" : "+v"(a.v));
  return a;
}
FASTGRAPH_INLINE F16 load_once(const float* p) { return load(p); }
FASTGRAPH_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
// The first `count` lanes, 0 to 16: zeros, and memory that is not touched, beyond.
FASTGRAPH_INLINE F16 load_first(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p)}; }
FASTGRAPH_INLINE void store_first(float* p, F16 a, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), a.v); }
FASTGRAPH_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FASTGRAPH_INLINE F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
FASTGRAPH_INLINE F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FASTGRAPH_INLINE F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FASTGRAPH_INLINE F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// The x86 rule: b where either is NaN.
FASTGRAPH_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
FASTGRAPH_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
FASTGRAPH_INLINE F16 bits_and(F16 a, uint32_t b) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(int(b))))};
}
FASTGRAPH_INLINE F16 bits_or(F16 a, F16 b) {
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
// Larger of the two bit patterns, as signed integers.
FASTGRAPH_INLINE F16 bits_max(F16 a, F16 b) {
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
FASTGRAPH_INLINE F16 round(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for whole n in [-126, 127].
FASTGRAPH_INLINE F16 exp2_whole(F16 n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
FASTGRAPH_INLINE F16 square_root(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
// floor(log2(a)) of what is positive, finite and no denormal.
FASTGRAPH_INLINE F16 exponent(F16 a) {
  return {_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(a.v), 23), _mm512_set1_epi32(127)))};
}
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
FASTGRAPH_INLINE bool any(Mask m) { return m.m != 0; }
FASTGRAPH_INLINE F16 select(Mask m, F16 yes, F16 no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
// Elements 0, 2, 4 ... and 1, 3, 5 ... of the 32 floats that a, b hold.
FASTGRAPH_INLINE void deinterleave(F16 a, F16 b, F16* even, F16* odd) {
  const __m512i e = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  even->v = _mm512_permutex2var_ps(a.v, e, b.v);
  odd->v = _mm512_permutex2var_ps(a.v, _mm512_or_si512(e, _mm512_set1_epi32(1)), b.v);
}
// The inverse: even[0], odd[0], even[1], odd[1] ...
FASTGRAPH_INLINE void interleave(F16 even, F16 odd, F16* a, F16* b) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  a->v = _mm512_permutex2var_ps(even.v, low, odd.v);
  b->v = _mm512_permutex2var_ps(even.v, _mm512_or_si512(low, _mm512_set1_epi32(8)), odd.v);
}
// Lanes 1 .. 15; the last one is anything.
FASTGRAPH_INLINE F16 next_lanes(F16 a) {
  return {_mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(a.v), 1))};
}
// Behind *carry lanes 0 .. 14; lane 15 becomes the next carry.
FASTGRAPH_INLINE F16 shift_in(float* carry, F16 a) {
  const __m512i last = _mm512_castps_si512(_mm512_set1_ps(*carry));
  *carry = _mm_cvtss_f32(_mm_permute_ps(_mm512_extractf32x4_ps(a.v, 3), 3));
  return {_mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(a.v), last, 15))};
}
// Sixteen pairs of bf16, as 32-bit words with the pair's first in the low half: all the firsts, and all the seconds.
FASTGRAPH_INLINE F16 firsts(const uint32_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
FASTGRAPH_INLINE F16 seconds(const uint32_t* p) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xFFFF0000u))))}; }

// Lane `c` of each four lanes, or eight, in all of them.
template <int G, int c>
FASTGRAPH_INLINE F16 spread(F16 a) {
  if constexpr (G == 4) return {_mm512_permute_ps(a.v, c * 0x55)};
  else return {_mm512_permutexvar_ps(_mm512_set_epi32(c + 8, c + 8, c + 8, c + 8, c + 8, c + 8, c + 8, c + 8, c, c, c, c, c, c, c, c), a.v)};
}

FASTGRAPH_INLINE F16 seconds_shifted(const uint32_t* p) { return seconds(p); }
FASTGRAPH_INLINE F16 with_zeros(F8 a) { return {_mm512_zextps256_ps512(a.v)}; }
FASTGRAPH_INLINE F16 join(F8 lo, F8 hi) { return {_mm512_insertf32x8(_mm512_castps256_ps512(lo.v), hi.v, 1)}; }

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
