// Rows of the families for AVX512, compiled with its flags (CMakeLists.txt).
#include "../../conv/cpu.inl"
#include "../../conv_pool/cpu.inl"
#include "../../conv_transpose/cpu.inl"
#include "../../cpu/gemm/bf16_widened.h"
#include "../../cpu/gemm/f32.h"
#include "../../depthwise/cpu.inl"
#include "../../pool/cpu.inl"
#include "../../upsample/cpu.inl"
#include "../../norm/norm.h"
#include "../../pointwise/program.h"
#include "../../reduce/reduce.h"
#include "../ceiling.inl"

namespace fastgraph {

extern const GemmKernels gemm_f32_avx512, gemm_bf16_avx512;
extern const ElementwiseKernels elementwise_avx512;
extern const ConvKernels conv_avx512;
extern const ConvPoolKernels conv_pool_avx512;
extern const CeilingKernels ceiling_avx512;
extern const ConvTransposeKernels conv_transpose_avx512;
extern const DepthwiseKernels depthwise_avx512;
extern const PoolKernels pool_avx512;
extern const UpsampleKernels upsample_avx512;
extern const NormKernels norm_avx512;
extern const PointwiseKernels pointwise_avx512;
extern const ReduceKernels reduce_avx512;

const GemmKernels gemm_f32_avx512 = {&f32_panels, FASTGRAPH_ISA::gemm_f32, nullptr};
const GemmKernels gemm_bf16_avx512 = {&bf16_pairs, FASTGRAPH_ISA::gemm_bf16, nullptr};
const ElementwiseKernels elementwise_avx512 = {FASTGRAPH_ISA::finish_rows};
const ConvKernels conv_avx512 = FASTGRAPH_ISA::kConv;
const ConvPoolKernels conv_pool_avx512 = {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots};
const CeilingKernels ceiling_avx512 = {FASTGRAPH_ISA::fma_f32, FASTGRAPH_ISA::kFmaFlops, FASTGRAPH_ISA::read, nullptr, 0};
const ConvTransposeKernels conv_transpose_avx512 = {FASTGRAPH_ISA::finish_pixels};
const DepthwiseKernels depthwise_avx512 = {FASTGRAPH_ISA::depthwise_span};
const PoolKernels pool_avx512 = {FASTGRAPH_ISA::pool_span, FASTGRAPH_ISA::adaptive_pool_span};
const UpsampleKernels upsample_avx512 = {FASTGRAPH_ISA::nearest_span, FASTGRAPH_ISA::linear_span, FASTGRAPH_ISA::bilinear_span};
const NormKernels norm_avx512 = {FASTGRAPH_ISA::layer_norm_rows, FASTGRAPH_ISA::rms_norm_rows, FASTGRAPH_ISA::channel_moments,
                                FASTGRAPH_ISA::scale_channels};
const PointwiseKernels pointwise_avx512 = {FASTGRAPH_ISA::apply_instruction};
const ReduceKernels reduce_avx512 = {FASTGRAPH_ISA::reduce_rows, FASTGRAPH_ISA::softmax_rows};

}  // namespace fastgraph
