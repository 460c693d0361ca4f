// AVX-512 on a machine without it: included before everything else, SIMDe (libsimde-dev) computes its intrinsics in AVX2, and
// three that it lacks are here. With this the AVX-512 kernels are compiled as they stand (tests/test_kernels_emulated.py).
#pragma once

#include <immintrin.h>

#define SIMDE_X86_AVX512F_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BW_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512DQ_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VL_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace emulated {

inline simde__m512i cvtps_epi32(simde__m512 a) {
  const simde__m512_private from = simde__m512_to_private(a);
  simde__m512i_private to;
  for (int i = 0; i < 2; i++) to.m256i[i] = _mm256_cvtps_epi32(from.m256[i]);
  return simde__m512i_from_private(to);
}

inline simde__m512i alignr_epi32(simde__m512i high, simde__m512i low, int count) {
  const simde__m512i_private a = simde__m512i_to_private(high), b = simde__m512i_to_private(low);
  simde__m512i_private to;
  for (int i = 0; i < 16; i++) to.i32[i] = i + count < 16 ? b.i32[i + count] : a.i32[i + count - 16];
  return simde__m512i_from_private(to);
}

inline simde__m512 zextps256_ps512(__m256 a) {
  simde__m512_private to;
  to.m256[0] = a;
  to.m256[1] = _mm256_setzero_ps();
  return simde__m512_from_private(to);
}

}  // namespace emulated

#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#undef _mm512_alignr_epi32
#define _mm512_alignr_epi32 emulated::alignr_epi32
#undef _mm512_zextps256_ps512
#define _mm512_zextps256_ps512 emulated::zextps256_ps512

#define __AVX512F__ 1
