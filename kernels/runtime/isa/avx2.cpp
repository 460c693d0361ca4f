// Rows of the families for AVX2, compiled with its flags (CMakeLists.txt).
#include "../../conv/cpu.inl"
#include "../../conv_pool/cpu.inl"
#include "../../cpu/gemm/bf16_widened.h"
#include "../../cpu/gemm/f32.h"
#include "../ceiling.inl"

namespace fastgraph {

extern const GemmKernels gemm_f32_avx2, gemm_bf16_avx2;
extern const ElementwiseKernels elementwise_avx2;
extern const ConvKernels conv_avx2;
extern const ConvPoolKernels conv_pool_avx2;
extern const CeilingKernels ceiling_avx2;

const GemmKernels gemm_f32_avx2 = {&f32_panels, FASTGRAPH_ISA::gemm_f32, nullptr};
const GemmKernels gemm_bf16_avx2 = {&bf16_pairs, FASTGRAPH_ISA::gemm_bf16, nullptr};
const ElementwiseKernels elementwise_avx2 = {FASTGRAPH_ISA::finish_rows};
const ConvKernels conv_avx2 = FASTGRAPH_ISA::kConv;
const ConvPoolKernels conv_pool_avx2 = {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots};
const CeilingKernels ceiling_avx2 = {FASTGRAPH_ISA::fma_f32, FASTGRAPH_ISA::kFmaFlops, FASTGRAPH_ISA::read, nullptr, 0};

}  // namespace fastgraph
