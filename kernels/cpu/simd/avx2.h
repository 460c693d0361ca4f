// F16 as two AVX registers. It has its own forms of what reads memory, since the halves can be loaded where they belong.
#pragma once

#include "eight_avx.h"

#define FASTGRAPH_HAS_HALVES 1

namespace fastgraph {
namespace FASTGRAPH_ISA {

// The register tile: rows of the largest, and vectors beside so many rows: as many accumulators as the register file holds
// beside the operands (12 of 16, two registers a vector).
constexpr int kTileRows = 6;
constexpr int kTileVectors[kTileRows + 1] = {0, 4, 3, 2, 1, 1, 1};
constexpr int kRegisters = 2;  // in one F16

// Chains that hide the latency of a multiply-add on two pipes (4 or 5 cycles each), and of a load.
constexpr int kFmaChains = 6;  // two registers each
constexpr int kReadChains = 4;

struct F16 { __m256 lo, hi; };
struct Mask { __m256 lo, hi; };

FASTGRAPH_INLINE F16 broadcast(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
FASTGRAPH_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// In registers from here on: GCC would rather read it again for each of several uses, and loads are scarce.
FASTGRAPH_INLINE F16 keep(F16 a) {
  asm("" : "+x"(a.lo), "+x"(a.hi));
  return a;
}
FASTGRAPH_INLINE F16 load_once(const float* p) { return keep(load(p)); }
FASTGRAPH_INLINE void store(float* p, F16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
// The first `count` lanes of eight, from 0 (or below) to 8 (or above), as a mask of words.
FASTGRAPH_INLINE __m256i first_lanes_8(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
// The first `count` lanes, 0 to 16: zeros, and memory that is not touched, beyond.
FASTGRAPH_INLINE F16 load_first(const float* p, int64_t count) {
  return {_mm256_maskload_ps(p, first_lanes_8(count)), _mm256_maskload_ps(p + 8, first_lanes_8(count - 8))};
}
FASTGRAPH_INLINE void store_first(float* p, F16 a, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes_8(count), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes_8(count - 8), a.hi);
}
FASTGRAPH_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
// What many values are multiplied by, in memory: registers are few, and beside many sums GCC would rather keep factors there than sums.
struct Factor { const float* p; };
FASTGRAPH_INLINE Factor factor(const float* p) { return {p}; }
FASTGRAPH_INLINE F16 fma(F16 a, Factor b, F16 sum) {
  asm("vfmadd231ps %1, %2, %0" : "+x"(sum.lo) : "m"(*reinterpret_cast<const __m256*>(b.p)), "x"(a.lo));
  asm("vfmadd231ps %1, %2, %0" : "+x"(sum.hi) : "m"(*reinterpret_cast<const __m256*>(b.p + 8)), "x"(a.hi));
  return sum;
}
// Halves one after the other, so that only one register of `right` is alive at a time.
template <int R, int V>
FASTGRAPH_INLINE void fma_column(const F16 (&left)[R], const float* right, int v, F16 (&sum)[R][V]) {
  const __m256 lo = _mm256_loadu_ps(right);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sum[i][v].lo = _mm256_fmadd_ps(left[i].lo, lo, sum[i][v].lo);
  const __m256 hi = _mm256_loadu_ps(right + 8);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sum[i][v].hi = _mm256_fmadd_ps(left[i].hi, hi, sum[i][v].hi);
}

FASTGRAPH_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
FASTGRAPH_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
FASTGRAPH_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
FASTGRAPH_INLINE F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// The x86 rule: b where either is NaN.
FASTGRAPH_INLINE F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
FASTGRAPH_INLINE F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
FASTGRAPH_INLINE F16 bits_and(F16 a, uint32_t b) {
  __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(int(b)));
  return {_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
FASTGRAPH_INLINE F16 bits_or(F16 a, F16 b) { return {_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)}; }
// Larger of the two bit patterns, as signed integers.
FASTGRAPH_INLINE F16 bits_max(F16 a, F16 b) {
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.lo), _mm256_castps_si256(b.lo))),
          _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.hi), _mm256_castps_si256(b.hi)))};
}
FASTGRAPH_INLINE F16 round(F16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
}
FASTGRAPH_INLINE __m256 exp2_whole_8(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// 2^n for whole n in [-126, 127].
FASTGRAPH_INLINE F16 exp2_whole(F16 n) { return {exp2_whole_8(n.lo), exp2_whole_8(n.hi)}; }
FASTGRAPH_INLINE F16 square_root(F16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
FASTGRAPH_INLINE __m256 exponent_8(__m256 a) {
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(127)));
}
// floor(log2(a)) of what is positive, finite and no denormal.
FASTGRAPH_INLINE F16 exponent(F16 a) { return {exponent_8(a.lo), exponent_8(a.hi)}; }
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)}; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)}; }
FASTGRAPH_INLINE bool any(Mask m) { return _mm256_movemask_ps(_mm256_or_ps(m.lo, m.hi)) != 0; }
FASTGRAPH_INLINE F16 select(Mask m, F16 yes, F16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
FASTGRAPH_INLINE void deinterleave_8(__m256 a, __m256 b, __m256* even, __m256* odd) {
  __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
  *even = _mm256_shuffle_ps(low, high, 0x88);
  *odd = _mm256_shuffle_ps(low, high, 0xDD);
}
// Elements 0, 2, 4 ... and 1, 3, 5 ... of the 32 floats that a, b hold.
FASTGRAPH_INLINE void deinterleave(F16 a, F16 b, F16* even, F16* odd) {
  deinterleave_8(a.lo, a.hi, &even->lo, &odd->lo);
  deinterleave_8(b.lo, b.hi, &even->hi, &odd->hi);
}
// The same of 32 floats in memory, whose halves the loads already put where they belong.
FASTGRAPH_INLINE __m256 load_halves(const float* lo, const float* hi) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(lo)), _mm_loadu_ps(hi), 1);
}
FASTGRAPH_INLINE void load_pairs_16(const float* p, __m256* even, __m256* odd) {
  const __m256 low = load_halves(p, p + 8), high = load_halves(p + 4, p + 12);
  *even = _mm256_shuffle_ps(low, high, 0x88);
  *odd = _mm256_shuffle_ps(low, high, 0xDD);
}
FASTGRAPH_INLINE void load_pairs(const float* p, F16* even, F16* odd) {
  load_pairs_16(p, &even->lo, &odd->lo);
  load_pairs_16(p + 16, &even->hi, &odd->hi);
}
FASTGRAPH_INLINE void interleave_8(__m256 even, __m256 odd, __m256* a, __m256* b) {
  __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  *a = _mm256_permute2f128_ps(low, high, 0x20);
  *b = _mm256_permute2f128_ps(low, high, 0x31);
}
// The inverse: even[0], odd[0], even[1], odd[1] ...
FASTGRAPH_INLINE void interleave(F16 even, F16 odd, F16* a, F16* b) {
  interleave_8(even.lo, odd.lo, &a->lo, &a->hi);
  interleave_8(even.hi, odd.hi, &b->lo, &b->hi);
}
FASTGRAPH_INLINE __m256 next_lanes_8(__m256 a, __m256 after) {
  const __m256i middle = _mm256_castps_si256(_mm256_permute2f128_ps(a, after, 0x21));
  return _mm256_castsi256_ps(_mm256_alignr_epi8(middle, _mm256_castps_si256(a), 4));
}
// Lanes 1 .. 15; the last one is anything.
FASTGRAPH_INLINE F16 next_lanes(F16 a) { return {next_lanes_8(a.lo, a.hi), next_lanes_8(a.hi, a.hi)}; }
// The last of `before`'s eight lanes, then lanes 0 .. 6; `middle` is the upper half of `before` and the lower of `a`.
FASTGRAPH_INLINE __m256 last_lanes_8(__m256 middle, __m256 a) {
  return _mm256_castsi256_ps(_mm256_alignr_epi8(_mm256_castps_si256(a), _mm256_castps_si256(middle), 12));
}
// Behind *carry lanes 0 .. 14; lane 15 becomes the next carry.
FASTGRAPH_INLINE F16 shift_in(float* carry, F16 a) {
  const __m256 first = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(carry)), _mm256_castps256_ps128(a.lo), 1);
  *carry = _mm_cvtss_f32(_mm_permute_ps(_mm256_extractf128_ps(a.hi, 1), 3));
  return {last_lanes_8(first, a.lo), last_lanes_8(_mm256_permute2f128_ps(a.lo, a.hi, 0x21), a.hi)};
}

// Lane `c` of each four lanes, or eight, in all of them.
template <int G, int c>
FASTGRAPH_INLINE __m256 spread_8(__m256 a) {
  if constexpr (G == 4) return _mm256_permute_ps(a, c * 0x55);
  else return _mm256_permutevar8x32_ps(a, _mm256_set1_epi32(c));
}
template <int G, int c>
FASTGRAPH_INLINE F16 spread(F16 a) { return {spread_8<G, c>(a.lo), spread_8<G, c>(a.hi)}; }

FASTGRAPH_INLINE F16 with_zeros(F8 a) { return {a.v, _mm256_setzero_ps()}; }
FASTGRAPH_INLINE F16 join(F8 lo, F8 hi) { return {lo.v, hi.v}; }
// Sixteen pairs.
FASTGRAPH_INLINE F16 firsts(const uint32_t* p) { return join(firsts_8(p), firsts_8(p + 8)); }
FASTGRAPH_INLINE F16 seconds(const uint32_t* p) { return join(seconds_8(p), seconds_8(p + 8)); }
FASTGRAPH_INLINE F16 seconds_shifted(const uint32_t* p) { return join(seconds_shifted_8(p), seconds_shifted_8(p + 8)); }

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
