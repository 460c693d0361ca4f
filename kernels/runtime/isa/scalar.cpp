// Rows of the families for any processor.
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

extern const GemmKernels gemm_f32_scalar, gemm_bf16_scalar;
extern const ElementwiseKernels elementwise_scalar;
extern const ConvKernels conv_scalar;
extern const ConvPoolKernels conv_pool_scalar;
extern const CeilingKernels ceiling_scalar;
extern const ConvTransposeKernels conv_transpose_scalar;
extern const DepthwiseKernels depthwise_scalar;
extern const PoolKernels pool_scalar;
extern const UpsampleKernels upsample_scalar;
extern const NormKernels norm_scalar;
extern const PointwiseKernels pointwise_scalar;
extern const ReduceKernels reduce_scalar;

const GemmKernels gemm_f32_scalar = {&f32_panels, FASTGRAPH_ISA::gemm_f32, nullptr};
const GemmKernels gemm_bf16_scalar = {&bf16_pairs, FASTGRAPH_ISA::gemm_bf16, nullptr};
const ElementwiseKernels elementwise_scalar = {FASTGRAPH_ISA::finish_rows};
const ConvKernels conv_scalar = FASTGRAPH_ISA::kConv;
const ConvPoolKernels conv_pool_scalar = {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots};
const CeilingKernels ceiling_scalar = {FASTGRAPH_ISA::fma_f32, FASTGRAPH_ISA::kFmaFlops, FASTGRAPH_ISA::read, nullptr, 0};
const ConvTransposeKernels conv_transpose_scalar = {FASTGRAPH_ISA::finish_pixels};
const DepthwiseKernels depthwise_scalar = {FASTGRAPH_ISA::depthwise_span};
const PoolKernels pool_scalar = {FASTGRAPH_ISA::pool_span, FASTGRAPH_ISA::adaptive_pool_span};
const UpsampleKernels upsample_scalar = {FASTGRAPH_ISA::nearest_span, FASTGRAPH_ISA::linear_span, FASTGRAPH_ISA::bilinear_span};
const NormKernels norm_scalar = {FASTGRAPH_ISA::layer_norm_rows, FASTGRAPH_ISA::rms_norm_rows, FASTGRAPH_ISA::channel_moments,
                                FASTGRAPH_ISA::scale_channels};
const PointwiseKernels pointwise_scalar = {FASTGRAPH_ISA::apply_instruction};
const ReduceKernels reduce_scalar = {FASTGRAPH_ISA::reduce_rows, FASTGRAPH_ISA::softmax_rows};

}  // namespace fastgraph
