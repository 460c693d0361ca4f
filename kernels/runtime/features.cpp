#include "features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fastgraph {

#if defined(__x86_64__)

const FeatureName kFeatureNames[] = {
    {"avx2", kAvx2},         {"fma", kFma},           {"f16c", kF16c},          {"avx512f", kAvx512f},         {"avx512bw", kAvx512bw},
    {"avx512dq", kAvx512dq}, {"avx512vl", kAvx512vl}, {"avx512_bf16", kAvx512Bf16}, {"avx512_vnni", kAvx512Vnni}, {"amx_tile", kAmxTile},
    {"amx_bf16", kAmxBf16},  {"amx_int8", kAmxInt8},
};

namespace {

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;  // zeros where the processor does not know it
  Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool has(unsigned word, int bit) { return word >> bit & 1; }

// Which registers the operating system saves (XCR0).
uint64_t saved_state() {
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Bits as in Intel's manual, volume 2, CPUID.
uint64_t detect() {
  const Leaf basic(1, 0), extended(7, 0), more(7, 1);
  if (!has(basic.c, 27)) return 0;  // OSXSAVE: only then may be asked
  const uint64_t saved = saved_state();
  const bool ymm = (saved & 0x6) == 0x6, zmm = ymm && (saved & 0xE0) == 0xE0, tiles = (saved & 0x60000) == 0x60000;
  uint64_t found = 0;
  const auto add = [&](uint64_t feature, bool is_there) { found |= is_there ? feature : 0; };
  add(kAvx2, ymm && has(extended.b, 5));
  add(kFma, ymm && has(basic.c, 12));
  add(kF16c, ymm && has(basic.c, 29));
  add(kAvx512f, zmm && has(extended.b, 16));
  add(kAvx512dq, zmm && has(extended.b, 17));
  add(kAvx512bw, zmm && has(extended.b, 30));
  add(kAvx512vl, zmm && has(extended.b, 31));
  add(kAvx512Vnni, zmm && has(extended.c, 11));
  add(kAvx512Bf16, zmm && has(more.a, 5));
  add(kAmxBf16, tiles && has(extended.d, 22));
  add(kAmxTile, tiles && has(extended.d, 24));
  add(kAmxInt8, tiles && has(extended.d, 25));
  return found;
}

}  // namespace

#elif defined(__aarch64__) && defined(__linux__)

const FeatureName kFeatureNames[] = {{"neon", kNeon}, {"dotprod", kDotProd}, {"i8mm", kI8mm}, {"bf16", kArmBf16}, {"sve", kSve}};

namespace {

// Bits as in the Linux kernel's arch/arm64/include/uapi/asm/hwcap.h.
uint64_t detect() {
  const unsigned long caps = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  uint64_t found = 0;
  const auto add = [&](uint64_t feature, bool is_there) { found |= is_there ? feature : 0; };
  add(kNeon, caps >> 1 & 1);
  add(kDotProd, caps >> 20 & 1);
  add(kSve, caps >> 22 & 1);
  add(kI8mm, more >> 13 & 1);
  add(kArmBf16, more >> 14 & 1);
  return found;
}

}  // namespace

#else

const FeatureName kFeatureNames[] = {{"none", 0}};

namespace {

uint64_t detect() { return 0; }

}  // namespace

#endif

const int kFeatureCount = int(sizeof(kFeatureNames) / sizeof(kFeatureNames[0]));

uint64_t features() {
  static const uint64_t found = detect();
  return found;
}

}  // namespace fastgraph
