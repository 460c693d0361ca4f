// The kernels, compiled with this ISA's flags (CMakeLists.txt).
#include "isa.h"

#include "../conv_pool/cpu.inl"
#include "../mlp/cpu.inl"

namespace fastgraph {

extern const Isa isa_scalar;
const Isa isa_scalar = {
    "scalar",
    [] { return bool(true); },
    {FASTGRAPH_ISA::mlp_layer, FASTGRAPH_ISA::mlp_layer_bf16, nullptr, FASTGRAPH_ISA::mlp_finish},
    {FASTGRAPH_ISA::conv_pool_strip, FASTGRAPH_ISA::kConvPoolDots},
};

}  // namespace fastgraph
