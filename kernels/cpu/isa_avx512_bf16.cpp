// The kernels, compiled with this ISA's flags (CMakeLists.txt).
#include "isa.h"

#include "../conv_pool/cpu.inl"
#include "../mlp/cpu.inl"

namespace fastgraph {

extern const Isa isa_avx512_bf16;
const Isa isa_avx512_bf16 = {
    "avx512_bf16",
    [] { return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")); },
    {FASTGRAPH_ISA::mlp_layer, FASTGRAPH_ISA::mlp_layer_bf16, FASTGRAPH_ISA::mlp_narrow, FASTGRAPH_ISA::mlp_finish},
    {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots},
};

}  // namespace fastgraph
