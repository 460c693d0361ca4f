// The kernels, compiled with this ISA's flags (CMakeLists.txt).
#include "isa.h"

#include "../conv_pool/cpu.inl"
#include "../mlp/cpu.inl"

namespace fastgraph {

extern const Isa isa_avx2;
const Isa isa_avx2 = {
    "avx2",
    [] { return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")); },
    {FASTGRAPH_ISA::mlp_layer, FASTGRAPH_ISA::mlp_layer_bf16, nullptr, FASTGRAPH_ISA::mlp_finish},
    {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots},
};

}  // namespace fastgraph
