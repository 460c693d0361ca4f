// Dot products of pairs of bf16, beside avx512.h.
#pragma once

#define FASTGRAPH_HAS_DOT 1

namespace fastgraph {
namespace FASTGRAPH_ISA {

// Two rows of sixteen lanes rounded to bf16, lane by lane in pairs: 32-bit words with `first` in the low half.
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

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
