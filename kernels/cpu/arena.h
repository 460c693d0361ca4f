// Scratch memory for kernels.
#pragma once

#include <stdint.h>

namespace fastgraph {

// Scratch memory of the calling thread, at least `floats` floats on a 64-byte boundary. It grows to the
// largest request and is kept until the thread ends; a second call may move it.
float* thread_arena(int64_t floats);

// The same for what lies between the kernels of a plan, which have the other one for themselves.
float* plan_arena(int64_t floats);

}  // namespace fastgraph
