// F16 and F8 as plain arrays: what the others have to give, and what runs everywhere.
#pragma once

namespace fastgraph {
namespace FASTGRAPH_ISA {

// The register tile: rows of the largest, and vectors beside so many rows.
constexpr int kTileRows = 4;
constexpr int kTileVectors[kTileRows + 1] = {0, 2, 1, 1, 1};
constexpr int kRegisters = 1;  // in one F16

// Chains that hide the latency of a multiply-add on two pipes (4 or 5 cycles each), and of a load.
constexpr int kFmaChains = 4;
constexpr int kReadChains = 4;

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
FASTGRAPH_INLINE F16 keep(F16 a) { return a; }
FASTGRAPH_INLINE F16 load_once(const float* p) { return load(p); }
FASTGRAPH_INLINE void store(float* p, F16 a) { for (int i = 0; i < kLanes; i++) p[i] = a.v[i]; }
// The first `count` lanes, 0 to 16: zeros, and memory that is not touched, beyond.
FASTGRAPH_INLINE F16 load_first(const float* p, int64_t count) { FASTGRAPH_LANES(i < count ? p[i] : 0.0f); }
FASTGRAPH_INLINE void store_first(float* p, F16 a, int64_t count) { for (int i = 0; i < count; i++) p[i] = a.v[i]; }
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
FASTGRAPH_INLINE F16 square_root(F16 a) { FASTGRAPH_LANES(__builtin_sqrtf(a.v[i])); }
// floor(log2(a)) of what is positive, finite and no denormal.
FASTGRAPH_INLINE F16 exponent(F16 a) { FASTGRAPH_LANES(float(int32_t(to_bits(a.v[i]) >> 23) - 127)); }
FASTGRAPH_INLINE Mask less(F16 a, F16 b) { Mask m; for (int i = 0; i < kLanes; i++) m.m[i] = a.v[i] < b.v[i]; return m; }
FASTGRAPH_INLINE Mask is_nan(F16 a) { Mask m; for (int i = 0; i < kLanes; i++) m.m[i] = a.v[i] != a.v[i]; return m; }
FASTGRAPH_INLINE bool any(Mask m) { bool found = false; for (int i = 0; i < kLanes; i++) found |= m.m[i]; return found; }
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
// Lane `c` of each four lanes, or eight, in all of them.
template <int G, int c>
FASTGRAPH_INLINE F16 spread(F16 a) {
  F16 r;
  for (int i = 0; i < kLanes; i++) r.v[i] = a.v[i / G * G + c];
  return r;
}


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

}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
