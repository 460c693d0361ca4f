// Rows of the families for AVX-512 with bf16 dot products, compiled with its flags (CMakeLists.txt).
#include "../../conv_pool/cpu.inl"
#include "../../cpu/gemm/bf16_dot.h"
#include "../ceiling.inl"

namespace fastgraph {

extern const GemmKernels gemm_bf16_avx512_bf16;
extern const ConvPoolKernels conv_pool_avx512_bf16;
extern const CeilingKernels ceiling_avx512_bf16;

const GemmKernels gemm_bf16_avx512_bf16 = {&bf16_pairs, FASTGRAPH_ISA::gemm_bf16, FASTGRAPH_ISA::narrow_rows};
const ConvPoolKernels conv_pool_avx512_bf16 = {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots};
const CeilingKernels ceiling_avx512_bf16 = {FASTGRAPH_ISA::fma_f32, FASTGRAPH_ISA::kFmaFlops, FASTGRAPH_ISA::read, FASTGRAPH_ISA::dot_bf16,
                                            FASTGRAPH_ISA::kDotFlops};

}  // namespace fastgraph
