#include "isa.h"

#include <string.h>

#include <atomic>

namespace fastgraph {

extern const Isa isa_avx512_bf16, isa_avx512, isa_avx2, isa_scalar;

const Isa* const kIsas[] = {&isa_avx512_bf16, &isa_avx512, &isa_avx2, &isa_scalar};
const int kIsaCount = int(sizeof(kIsas) / sizeof(kIsas[0]));

namespace {

const Isa* best() {
  for (const Isa* candidate : kIsas)
    if (candidate->supported()) return candidate;
  return &isa_scalar;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> chosen{best()};
  return chosen;
}

}  // namespace

const Isa& isa() { return *current().load(std::memory_order_relaxed); }

bool select_isa(const char* name) {
  for (const Isa* candidate : kIsas) {
    if (strcmp(candidate->name, name) != 0) continue;
    if (!candidate->supported()) return false;
    current().store(candidate);
    return true;
  }
  return false;
}

}  // namespace fastgraph
