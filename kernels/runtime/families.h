// Families of kernels: a table each, and the choice among its rows by what the processor can do.
//
// A row names the features that it needs. The best row that can be had is used, unless a row says that its features may be slower
// than without them, which no feature bit tells: that is measured once. A packed object keeps the kernels it was packed for.
#pragma once

#include <stdint.h>

#include <vector>

#include "../conv/kernels.h"
#include "../conv_pool/cpu.h"
#include "../cpu/gemm/gemm.h"
#include "../conv_transpose/cpu.h"
#include "../depthwise/cpu.h"
#include "../pool/cpu.h"
#include "../upsample/cpu.h"
#include "../norm/cpu.h"
#include "../pointwise/cpu.h"
#include "../reduce/cpu.h"
#include "ceiling.h"

namespace fastgraph {

// What FASTGRAPH_CPU can ask for: a name for a set of features.
struct Capability {
  const char* name;
  uint64_t features;
  bool is_supported() const;
};

// Best first; the last one, "scalar", runs everywhere.
extern const Capability kCapabilities[];
extern const int kCapabilityCount;

// The one in use: the best that this machine supports, until select_capability() says otherwise.
const Capability& capability();

// From now on kernels are chosen by that capability alone, whatever was measured. False where none of that name is known or this
// machine does not support it; nothing changes then.
bool select_capability(const char* name);

template <class Kernels>
struct FamilyRow {
  const char* name;
  uint64_t needs;
  const Kernels* kernels;
  double (*gain)() = nullptr;  // where the features may be slower than without them: the measured speed, against the next row's
};

// Names of a family's rows, for those who look at it (cpu_capability).
struct FamilyChoice {
  const char* family;
  const char* row;
  double gain;  // of the best row that can be had; 0 where nothing had to be measured
};

template <class Kernels>
class Family {
 public:
  template <int N>
  constexpr Family(const char* name, const FamilyRow<Kernels> (&rows)[N]) : name_(name), rows_(rows), count_(N) {}

  const FamilyRow<Kernels>& best() const;
  const Kernels& kernels() const { return *best().kernels; }
  FamilyChoice choice() const;

 private:
  const char* name_;
  const FamilyRow<Kernels>* rows_;
  int count_;
};

namespace families {
extern const Family<GemmKernels> gemm_f32, gemm_bf16;
extern const Family<ElementwiseKernels> elementwise;
extern const Family<ConvKernels> conv;
extern const Family<ConvPoolKernels> conv_pool;
extern const Family<CeilingKernels> ceiling;
extern const Family<ConvTransposeKernels> conv_transpose;
extern const Family<DepthwiseKernels> depthwise;
extern const Family<PoolKernels> pool;
extern const Family<UpsampleKernels> upsample;
extern const Family<NormKernels> norm;
extern const Family<PointwiseKernels> pointwise;
extern const Family<ReduceKernels> reduce;
}  // namespace families

std::vector<FamilyChoice> family_choices();

}  // namespace fastgraph
