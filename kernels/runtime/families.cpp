#include "families.h"

#include <string.h>

#include <atomic>

#include "features.h"

namespace fastgraph {

// isa/*.cpp
extern const GemmKernels gemm_f32_avx512, gemm_f32_avx2, gemm_f32_scalar;
extern const GemmKernels gemm_bf16_avx512_bf16, gemm_bf16_avx512, gemm_bf16_avx2, gemm_bf16_scalar;
extern const ElementwiseKernels elementwise_avx512, elementwise_avx2, elementwise_scalar;
extern const ConvKernels conv_avx512, conv_avx2, conv_scalar;
extern const ConvPoolKernels conv_pool_avx512_bf16, conv_pool_avx512, conv_pool_avx2, conv_pool_scalar;
extern const CeilingKernels ceiling_avx512_bf16, ceiling_avx512, ceiling_avx2, ceiling_scalar;
extern const ConvTransposeKernels conv_transpose_avx512, conv_transpose_avx2, conv_transpose_scalar;
extern const DepthwiseKernels depthwise_avx512, depthwise_avx2, depthwise_scalar;
extern const PoolKernels pool_avx512, pool_avx2, pool_scalar;
extern const UpsampleKernels upsample_avx512, upsample_avx2, upsample_scalar;
extern const NormKernels norm_avx512, norm_avx2, norm_scalar;
extern const PointwiseKernels pointwise_avx512, pointwise_avx2, pointwise_scalar;
extern const ReduceKernels reduce_avx512, reduce_avx2, reduce_scalar;

namespace {

constexpr uint64_t kAvx2Set = kAvx2 | kFma;
constexpr uint64_t kAvx512Set = kAvx2Set | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl;
constexpr uint64_t kAvx512Bf16Set = kAvx512Set | kAvx512Bf16;

// Dot products' FLOP/s against those of fp32 multiply-adds: 0.54 on Sapphire Rapids, 1.8 on Zen 4.
double dot_gain() {
  static const double gain = dot_against_fma(ceiling_avx512_bf16);
  return gain;
}

constexpr FamilyRow<GemmKernels> kGemmF32[] = {
    {"avx512", kAvx512Set, &gemm_f32_avx512}, {"avx2", kAvx2Set, &gemm_f32_avx2}, {"scalar", 0, &gemm_f32_scalar}};
constexpr FamilyRow<GemmKernels> kGemmBf16[] = {{"avx512_bf16", kAvx512Bf16Set, &gemm_bf16_avx512_bf16, dot_gain},
                                                {"avx512", kAvx512Set, &gemm_bf16_avx512},
                                                {"avx2", kAvx2Set, &gemm_bf16_avx2},
                                                {"scalar", 0, &gemm_bf16_scalar}};
constexpr FamilyRow<ElementwiseKernels> kElementwise[] = {
    {"avx512", kAvx512Set, &elementwise_avx512}, {"avx2", kAvx2Set, &elementwise_avx2}, {"scalar", 0, &elementwise_scalar}};
constexpr FamilyRow<ConvKernels> kConv[] = {
    {"avx512", kAvx512Set, &conv_avx512}, {"avx2", kAvx2Set, &conv_avx2}, {"scalar", 0, &conv_scalar}};
constexpr FamilyRow<ConvPoolKernels> kConvPool[] = {{"avx512_bf16", kAvx512Bf16Set, &conv_pool_avx512_bf16, dot_gain},
                                                    {"avx512", kAvx512Set, &conv_pool_avx512},
                                                    {"avx2", kAvx2Set, &conv_pool_avx2},
                                                    {"scalar", 0, &conv_pool_scalar}};
constexpr FamilyRow<CeilingKernels> kCeiling[] = {{"avx512_bf16", kAvx512Bf16Set, &ceiling_avx512_bf16},
                                                  {"avx512", kAvx512Set, &ceiling_avx512},
                                                  {"avx2", kAvx2Set, &ceiling_avx2},
                                                  {"scalar", 0, &ceiling_scalar}};
constexpr FamilyRow<ConvTransposeKernels> kConvTranspose[] = {
    {"avx512", kAvx512Set, &conv_transpose_avx512}, {"avx2", kAvx2Set, &conv_transpose_avx2}, {"scalar", 0, &conv_transpose_scalar}};
constexpr FamilyRow<DepthwiseKernels> kDepthwise[] = {
    {"avx512", kAvx512Set, &depthwise_avx512}, {"avx2", kAvx2Set, &depthwise_avx2}, {"scalar", 0, &depthwise_scalar}};
constexpr FamilyRow<PoolKernels> kPool[] = {
    {"avx512", kAvx512Set, &pool_avx512}, {"avx2", kAvx2Set, &pool_avx2}, {"scalar", 0, &pool_scalar}};
constexpr FamilyRow<UpsampleKernels> kUpsample[] = {
    {"avx512", kAvx512Set, &upsample_avx512}, {"avx2", kAvx2Set, &upsample_avx2}, {"scalar", 0, &upsample_scalar}};
constexpr FamilyRow<NormKernels> kNorm[] = {{"avx512", kAvx512Set, &norm_avx512}, {"avx2", kAvx2Set, &norm_avx2}, {"scalar", 0, &norm_scalar}};
constexpr FamilyRow<PointwiseKernels> kPointwise[] = {
    {"avx512", kAvx512Set, &pointwise_avx512}, {"avx2", kAvx2Set, &pointwise_avx2}, {"scalar", 0, &pointwise_scalar}};
constexpr FamilyRow<ReduceKernels> kReduce[] = {
    {"avx512", kAvx512Set, &reduce_avx512}, {"avx2", kAvx2Set, &reduce_avx2}, {"scalar", 0, &reduce_scalar}};

const Capability* best_capability() {
  for (int i = 0; i + 1 < kCapabilityCount; i++)
    if (kCapabilities[i].is_supported()) return &kCapabilities[i];
  return &kCapabilities[kCapabilityCount - 1];
}

// Read at each packing; both change together only in tests.
std::atomic<const Capability*>& current() {
  static std::atomic<const Capability*> chosen{best_capability()};
  return chosen;
}
std::atomic<bool> is_forced{false};

}  // namespace

const Capability kCapabilities[] = {{"avx512_bf16", kAvx512Bf16Set}, {"avx512", kAvx512Set}, {"avx2", kAvx2Set}, {"scalar", 0}};
const int kCapabilityCount = int(sizeof(kCapabilities) / sizeof(kCapabilities[0]));

bool Capability::is_supported() const { return (this->features & ~fastgraph::features()) == 0; }

const Capability& capability() { return *current().load(std::memory_order_relaxed); }

bool select_capability(const char* name) {
  for (const Capability& candidate : kCapabilities) {
    if (strcmp(candidate.name, name) != 0) continue;
    if (!candidate.is_supported()) return false;
    current().store(&candidate);
    is_forced.store(true);
    return true;
  }
  return false;
}

template <class Kernels>
const FamilyRow<Kernels>& Family<Kernels>::best() const {
  const uint64_t allowed = capability().features;
  for (int i = 0; i + 1 < count_; i++) {
    const FamilyRow<Kernels>& row = rows_[i];
    if ((row.needs & ~allowed) == 0 && (row.gain == nullptr || is_forced.load() || row.gain() > 1)) return row;
  }
  return rows_[count_ - 1];
}

template <class Kernels>
FamilyChoice Family<Kernels>::choice() const {
  const uint64_t allowed = capability().features;
  for (int i = 0; i < count_; i++)
    if ((rows_[i].needs & ~allowed) == 0) return {name_, best().name, rows_[i].gain ? rows_[i].gain() : 0};
  return {name_, best().name, 0};
}

namespace families {
const Family<GemmKernels> gemm_f32("gemm_f32", kGemmF32), gemm_bf16("gemm_bf16", kGemmBf16);
const Family<ElementwiseKernels> elementwise("elementwise", kElementwise);
const Family<ConvKernels> conv("conv", kConv);
const Family<ConvPoolKernels> conv_pool("conv_pool", kConvPool);
const Family<CeilingKernels> ceiling("ceiling", kCeiling);
const Family<ConvTransposeKernels> conv_transpose("conv_transpose", kConvTranspose);
const Family<DepthwiseKernels> depthwise("depthwise", kDepthwise);
const Family<PoolKernels> pool("pool", kPool);
const Family<UpsampleKernels> upsample("upsample", kUpsample);
const Family<NormKernels> norm("norm", kNorm);
const Family<PointwiseKernels> pointwise("pointwise", kPointwise);
const Family<ReduceKernels> reduce("reduce", kReduce);
}  // namespace families

std::vector<FamilyChoice> family_choices() {
  using namespace families;
  return {gemm_f32.choice(),       gemm_bf16.choice(), elementwise.choice(), conv.choice(), conv_pool.choice(), depthwise.choice(),
          conv_transpose.choice(), pool.choice(),      upsample.choice(),    norm.choice(), pointwise.choice(), reduce.choice(), ceiling.choice()};
}

template class Family<GemmKernels>;
template class Family<ElementwiseKernels>;
template class Family<ConvKernels>;
template class Family<ConvPoolKernels>;
template class Family<CeilingKernels>;
template class Family<ConvTransposeKernels>;
template class Family<DepthwiseKernels>;
template class Family<PoolKernels>;
template class Family<UpsampleKernels>;
template class Family<NormKernels>;
template class Family<PointwiseKernels>;
template class Family<ReduceKernels>;

}  // namespace fastgraph
