// What this processor can do, as far as the operating system lets it.
#pragma once

#include <stdint.h>

namespace fastgraph {

enum Feature : uint64_t {
  kAvx2 = 1 << 0,
  kFma = 1 << 1,
  kF16c = 1 << 2,
  kAvx512f = 1 << 3,
  kAvx512bw = 1 << 4,
  kAvx512dq = 1 << 5,
  kAvx512vl = 1 << 6,
  kAvx512Bf16 = 1 << 7,
  kAvx512Vnni = 1 << 8,
  kAmxTile = 1 << 9,
  kAmxBf16 = 1 << 10,
  kAmxInt8 = 1 << 11,
  kNeon = 1 << 12,
  kDotProd = 1 << 13,
  kI8mm = 1 << 14,
  kArmBf16 = 1 << 15,
  kSve = 1 << 16,
};

struct FeatureName {
  const char* name;  // as in /proc/cpuinfo on x86
  uint64_t bit;
};

// All that are known on this architecture.
extern const FeatureName kFeatureNames[];
extern const int kFeatureCount;

// Bits of Feature; asked once.
uint64_t features();

}  // namespace fastgraph
