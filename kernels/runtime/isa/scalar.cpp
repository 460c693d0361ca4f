// Rows of the families for any processor.
#include "../../conv_pool/cpu.inl"
#include "../../cpu/gemm/bf16_widened.h"
#include "../../cpu/gemm/f32.h"
#include "../../norm/norm.h"
#include "../../pointwise/program.h"
#include "../../reduce/reduce.h"
#include "../ceiling.inl"

namespace fastgraph {

extern const GemmKernels gemm_f32_scalar, gemm_bf16_scalar;
extern const ElementwiseKernels elementwise_scalar;
extern const ConvPoolKernels conv_pool_scalar;
extern const CeilingKernels ceiling_scalar;
extern const NormKernels norm_scalar;
extern const PointwiseKernels pointwise_scalar;
extern const ReduceKernels reduce_scalar;

const GemmKernels gemm_f32_scalar = {&f32_panels, FASTGRAPH_ISA::gemm_f32, nullptr};
const GemmKernels gemm_bf16_scalar = {&bf16_pairs, FASTGRAPH_ISA::gemm_bf16, nullptr};
const ElementwiseKernels elementwise_scalar = {FASTGRAPH_ISA::finish_rows};
const ConvPoolKernels conv_pool_scalar = {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots};
const CeilingKernels ceiling_scalar = {FASTGRAPH_ISA::fma_f32, FASTGRAPH_ISA::kFmaFlops, FASTGRAPH_ISA::read, nullptr, 0};
const NormKernels norm_scalar = {FASTGRAPH_ISA::layer_norm_rows, FASTGRAPH_ISA::rms_norm_rows, FASTGRAPH_ISA::channel_moments,
                                FASTGRAPH_ISA::scale_channels};
const PointwiseKernels pointwise_scalar = {FASTGRAPH_ISA::apply_instruction};
const ReduceKernels reduce_scalar = {FASTGRAPH_ISA::reduce_rows, FASTGRAPH_ISA::softmax_rows};

}  // namespace fastgraph
