// bfloat16, one number at a time: the upper half of an fp32 number's bits.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fastgraph {

inline float widen(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Round to nearest even; a NaN stays one.
inline uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace fastgraph
