// The kernels that exist once per instruction set, and the choice among them.
#pragma once

#include <stdint.h>

#include "../conv_pool/cpu.h"
#include "../mlp/cpu.h"

namespace fastgraph {

struct Isa {
  const char* name;
  bool (*supported)();
  MlpKernels mlp;
  ConvPoolKernels conv_pool;
};

// Best first; the last one, "scalar", runs everywhere.
extern const Isa* const kIsas[];
extern const int kIsaCount;

// The one in use: the best that this machine supports, until select_isa() says otherwise.
const Isa& isa();

// False where no ISA of that name is known or this machine does not support it; nothing changes then.
bool select_isa(const char* name);

}  // namespace fastgraph
