// The ceiling's loops, compiled with this ISA's flags (CMakeLists.txt).
#include "ceiling.inl"

namespace fastgraph {

extern const CeilingKernels ceiling_scalar;
const CeilingKernels ceiling_scalar = {
    "scalar", FASTGRAPH_ISA::fma_f32, 2 * FASTGRAPH_ISA::kFmaChains * FASTGRAPH_ISA::kLanes, FASTGRAPH_ISA::read,
};

}  // namespace fastgraph
