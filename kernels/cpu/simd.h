// Sixteen floats, whatever the instruction set: one AVX-512 register, two AVX2
// registers, or a plain array. Every kernel is written on `F16` alone, so one
// source serves every ISA and a lane's arithmetic is the same in all of them:
// IEEE single precision, fused multiply-add, round to nearest even.
//
// This header is compiled once per ISA with that ISA's flags (see CMakeLists.txt);
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

#if defined(__AVX512F__)

struct F16 { __m512 v; };
struct Mask { __mmask16 m; };

FASTGRAPH_INLINE F16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
FASTGRAPH_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
FASTGRAPH_INLINE F16 load_once(const float* p) { return load(p); }
FASTGRAPH_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
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
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
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

#if defined(__AVX512BF16__)
// Two rows of sixteen lanes rounded to bf16, lane by lane in pairs: 32-bit words with `first` in the low half.
#define FASTGRAPH_HAS_DOT 1
FASTGRAPH_INLINE F16 pair_up(F16 first, F16 second) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(order), __m512i(_mm512_cvtne2ps_pbh(second.v, first.v))))};
}
// sum + the two products of each pair of `b` with the pair at `word`, accumulated in fp32; takes denormals as zero. As
// assembly, since GCC 12 loads the broadcast by an instruction of its own: Net's convolution 1.2 times as fast so.
FASTGRAPH_INLINE F16 dot_broadcast(const float* word, F16 b, F16 sum) {
  __m512 total = sum.v;
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(total) : "v"(b.v), "m"(*word));
  return {total};
}
#endif

#elif defined(__AVX2__) && defined(__FMA__)

struct F16 { __m256 lo, hi; };
struct Mask { __m256 lo, hi; };

FASTGRAPH_INLINE F16 broadcast(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
FASTGRAPH_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// Loaded once: GCC would rather read it again for each of several uses, and loads are scarce.
FASTGRAPH_INLINE F16 load_once(const float* p) {
  F16 a = load(p);
  asm("" : "+x"(a.lo), "+x"(a.hi));
  return a;
}
FASTGRAPH_INLINE void store(float* p, F16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
FASTGRAPH_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
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
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)}; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)}; }
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

#else

struct F16 { float v[kLanes]; };
struct Mask { bool m[kLanes]; };

#define FASTGRAPH_LANES(expression) \
  F16 r;                            \
  for (int i = 0; i < kLanes; i++) r.v[i] = (expression); \
  return r

FASTGRAPH_INLINE uint32_t to_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
FASTGRAPH_INLINE float from_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
FASTGRAPH_INLINE F16 broadcast(float x) { FASTGRAPH_LANES(x); }
// Sixteen pairs of bf16, as 32-bit words with the pair's first in the low half: all the firsts, and all the seconds.
FASTGRAPH_INLINE F16 firsts(const uint32_t* p) { FASTGRAPH_LANES(from_bits(p[i] << 16)); }
FASTGRAPH_INLINE F16 seconds(const uint32_t* p) { FASTGRAPH_LANES(from_bits(p[i] & 0xFFFF0000u)); }
FASTGRAPH_INLINE F16 load(const float* p) { FASTGRAPH_LANES(p[i]); }
FASTGRAPH_INLINE F16 load_once(const float* p) { return load(p); }
FASTGRAPH_INLINE void store(float* p, F16 a) { for (int i = 0; i < kLanes; i++) p[i] = a.v[i]; }
FASTGRAPH_INLINE F16 fma(F16 a, F16 b, F16 c) { FASTGRAPH_LANES(__builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
FASTGRAPH_INLINE F16 add(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] + b.v[i]); }
FASTGRAPH_INLINE F16 sub(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] - b.v[i]); }
FASTGRAPH_INLINE F16 mul(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] * b.v[i]); }
FASTGRAPH_INLINE F16 div(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] / b.v[i]); }
// The x86 rule: b where either is NaN.
FASTGRAPH_INLINE F16 max(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
FASTGRAPH_INLINE F16 min(F16 a, F16 b) { FASTGRAPH_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
FASTGRAPH_INLINE F16 bits_and(F16 a, uint32_t b) { FASTGRAPH_LANES(from_bits(to_bits(a.v[i]) & b)); }
FASTGRAPH_INLINE F16 bits_or(F16 a, F16 b) { FASTGRAPH_LANES(from_bits(to_bits(a.v[i]) | to_bits(b.v[i]))); }
// Larger of the two bit patterns, as signed integers.
FASTGRAPH_INLINE F16 bits_max(F16 a, F16 b) { FASTGRAPH_LANES(int32_t(to_bits(a.v[i])) > int32_t(to_bits(b.v[i])) ? a.v[i] : b.v[i]); }
FASTGRAPH_INLINE F16 round(F16 a) { FASTGRAPH_LANES(__builtin_rintf(a.v[i])); }
// 2^n for whole n in [-126, 127]. A NaN has no whole part: it gives 1 and the caller's product keeps the NaN.
FASTGRAPH_INLINE F16 exp2_whole(F16 n) { FASTGRAPH_LANES(n.v[i] == n.v[i] ? from_bits(uint32_t(int32_t(n.v[i]) + 127) << 23) : 1.0f); }
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { Mask m; for (int i = 0; i < kLanes; i++) m.m[i] = a.v[i] < b.v[i]; return m; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { Mask m; for (int i = 0; i < kLanes; i++) m.m[i] = a.v[i] != a.v[i]; return m; }
FASTGRAPH_INLINE F16 select(Mask m, F16 yes, F16 no) { FASTGRAPH_LANES(m.m[i] ? yes.v[i] : no.v[i]); }
// Lanes 1 .. 15; the last one is anything.
FASTGRAPH_INLINE F16 next_lanes(F16 a) { FASTGRAPH_LANES(a.v[(i + 1) % kLanes]); }
// Behind *carry lanes 0 .. 14; lane 15 becomes the next carry.
FASTGRAPH_INLINE F16 shift_in(float* carry, F16 a) {
  const float first = *carry;
  *carry = a.v[kLanes - 1];
  FASTGRAPH_LANES(i == 0 ? first : a.v[i - 1]);
}
// Elements 0, 2, 4 ... and 1, 3, 5 ... of the 32 floats that a, b hold.
FASTGRAPH_INLINE void deinterleave(F16 a, F16 b, F16* even, F16* odd) {
  for (int i = 0; i < kLanes / 2; i++) {
    even->v[i] = a.v[2 * i];
    even->v[i + kLanes / 2] = b.v[2 * i];
    odd->v[i] = a.v[2 * i + 1];
    odd->v[i + kLanes / 2] = b.v[2 * i + 1];
  }
}
// The inverse: even[0], odd[0], even[1], odd[1] ...
FASTGRAPH_INLINE void interleave(F16 even, F16 odd, F16* a, F16* b) {
  for (int i = 0; i < kLanes / 2; i++) {
    a->v[2 * i] = even.v[i];
    a->v[2 * i + 1] = odd.v[i];
    b->v[2 * i] = even.v[i + kLanes / 2];
    b->v[2 * i + 1] = odd.v[i + kLanes / 2];
  }
}
#undef FASTGRAPH_LANES

#endif

#if !(defined(__AVX2__) && defined(__FMA__)) || defined(__AVX512F__)
FASTGRAPH_INLINE void load_pairs(const float* p, F16* even, F16* odd) { deinterleave(load(p), load(p + kLanes), even, odd); }

// sum[i][v] += left[i] * right for all i; `right` is sixteen floats in memory.
template <int R, int V>
FASTGRAPH_INLINE void fma_column(const F16 (&left)[R], const float* right, int v, F16 (&sum)[R][V]) {
  const F16 x = load(right);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sum[i][v] = fma(left[i], x, sum[i][v]);
}
#endif

// The first eight lanes alone, which on AVX2 are half the work: for panels with few outputs.
#if defined(__AVX2__) && defined(__FMA__)
struct F8 { __m256 v; };
FASTGRAPH_INLINE F8 broadcast_8(float x) { return {_mm256_set1_ps(x)}; }
FASTGRAPH_INLINE F8 load_8(const float* p) { return {_mm256_loadu_ps(p)}; }
FASTGRAPH_INLINE F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Eight pairs of bf16, as 32-bit words with the pair's first in the low half: all the firsts, and all the seconds.
FASTGRAPH_INLINE __m256i load_words_8(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
FASTGRAPH_INLINE F8 firsts_8(const uint32_t* p) { return {_mm256_castsi256_ps(_mm256_slli_epi32(load_words_8(p), 16))}; }
FASTGRAPH_INLINE F8 seconds_8(const uint32_t* p) { return {_mm256_castsi256_ps(_mm256_and_si256(load_words_8(p), _mm256_set1_epi32(int(0xFFFF0000u))))}; }
// The same without a register for a mask, in an instruction more.
FASTGRAPH_INLINE F8 seconds_shifted_8(const uint32_t* p) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(load_words_8(p), 16), 16))}; }
#if defined(__AVX512F__)
FASTGRAPH_INLINE F16 seconds_shifted(const uint32_t* p) { return seconds(p); }
FASTGRAPH_INLINE F16 with_zeros(F8 a) { return {_mm512_zextps256_ps512(a.v)}; }
FASTGRAPH_INLINE F16 join(F8 lo, F8 hi) { return {_mm512_insertf32x8(_mm512_castps256_ps512(lo.v), hi.v, 1)}; }
#else
FASTGRAPH_INLINE F16 with_zeros(F8 a) { return {a.v, _mm256_setzero_ps()}; }
FASTGRAPH_INLINE F16 join(F8 lo, F8 hi) { return {lo.v, hi.v}; }
// Sixteen pairs.
FASTGRAPH_INLINE F16 firsts(const uint32_t* p) { return join(firsts_8(p), firsts_8(p + 8)); }
FASTGRAPH_INLINE F16 seconds(const uint32_t* p) { return join(seconds_8(p), seconds_8(p + 8)); }
FASTGRAPH_INLINE F16 seconds_shifted(const uint32_t* p) { return join(seconds_shifted_8(p), seconds_shifted_8(p + 8)); }
#endif
#else
struct F8 { float v[kLanes / 2]; };
#define FASTGRAPH_LANES(expression) \
  F8 r;                             \
  for (int i = 0; i < kLanes / 2; i++) r.v[i] = (expression); \
  return r
FASTGRAPH_INLINE F8 broadcast_8(float x) { FASTGRAPH_LANES(x); }
FASTGRAPH_INLINE F8 load_8(const float* p) { FASTGRAPH_LANES(p[i]); }
FASTGRAPH_INLINE F8 fma(F8 a, F8 b, F8 c) { FASTGRAPH_LANES(__builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
FASTGRAPH_INLINE F8 firsts_8(const uint32_t* p) { FASTGRAPH_LANES(from_bits(p[i] << 16)); }
FASTGRAPH_INLINE F8 seconds_8(const uint32_t* p) { FASTGRAPH_LANES(from_bits(p[i] & 0xFFFF0000u)); }
FASTGRAPH_INLINE F8 seconds_shifted_8(const uint32_t* p) { return seconds_8(p); }
FASTGRAPH_INLINE F16 seconds_shifted(const uint32_t* p) { return seconds(p); }
#undef FASTGRAPH_LANES
FASTGRAPH_INLINE F16 join(F8 lo, F8 hi) {
  F16 r;
  for (int i = 0; i < kLanes; i++) r.v[i] = i < kLanes / 2 ? lo.v[i] : hi.v[i - kLanes / 2];
  return r;
}
FASTGRAPH_INLINE F16 with_zeros(F8 a) { return join(a, broadcast_8(0.0f)); }
#endif

FASTGRAPH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
