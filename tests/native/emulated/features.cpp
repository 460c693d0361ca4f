// In place of kernels/runtime/features.cpp: a processor with AVX-512, which is emulated.
#include "../../../kernels/runtime/features.h"

namespace fastgraph {

const FeatureName kFeatureNames[] = {{"avx2", kAvx2}};
const int kFeatureCount = 1;

uint64_t features() { return kAvx2 | kFma | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl; }

}  // namespace fastgraph
