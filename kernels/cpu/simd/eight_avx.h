// The first eight lanes alone, F8: half the work on AVX2, for panels with few outputs.
#pragma once

namespace fastgraph {
namespace FASTGRAPH_ISA {

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

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
