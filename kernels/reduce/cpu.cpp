#include "cpu.h"

#include <math.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastgraph {
namespace {

constexpr int64_t kChunkValues = 8192;

// Calls part(first, count) for parts of all rows.
template <class Part>
void divide(int64_t rows, int64_t size, Lease& lease, const Part& part) {
  const int64_t each = lease.threads() == 1 ? rows : std::max<int64_t>(1, kChunkValues / size);
  lease.run((rows + each - 1) / each, [&](int64_t c) { part(c * each, std::min(each, rows - c * each)); });
}

const float* input(const View* inputs) { return static_cast<const float*>(inputs[0].data); }

}  // namespace

Reduce::Reduce(int kind, int axes, const ReduceKernels& kernels) : kind_(static_cast<Reduction>(kind)), axes_(axes), kernels_(kernels) {
  if (kind < 0 || kind > int(Reduction::amin)) throw std::invalid_argument("Reduce: kind: needs 0 to 3, got " + std::to_string(kind));
  if (axes < 1) throw std::invalid_argument("Reduce: axes: needs at least 1, got " + std::to_string(axes));
}

int64_t Reduce::row_size(const View& x) const {
  int64_t size = 1;
  for (int i = x.rank - axes_; i < x.rank; i++) size *= x.sizes[i];
  return size;
}

double Reduce::estimate_ns(const View* inputs) const {
  const double values = double(inputs[0].numel());
  return 30 + 0.05 * values + 8 * values / double(std::max<int64_t>(1, row_size(inputs[0])));
}

void Reduce::run(const View* inputs, const View* outputs, Lease& lease) const {
  const int64_t size = row_size(inputs[0]), rows = outputs[0].numel();
  float* const y = static_cast<float*>(outputs[0].data);
  if (rows == 0) return;
  if (size == 0) {
    std::fill(y, y + rows, kind_ == Reduction::sum ? 0.0f : NAN);
    return;
  }
  divide(rows, size, lease, [&](int64_t first, int64_t count) { kernels_.reduce(kind_, input(inputs) + first * size, count, size, y + first); });
}

double Softmax::estimate_ns(const View* inputs) const {
  const View& x = inputs[0];
  const double values = double(x.numel()), size = x.rank == 0 ? 1 : double(std::max<int64_t>(1, x.sizes[x.rank - 1]));
  return 30 + 0.35 * values + 25 * values / size;
}

void Softmax::run(const View* inputs, const View* outputs, Lease& lease) const {
  const View& x = inputs[0];
  const int64_t size = x.rank == 0 ? 1 : x.sizes[x.rank - 1], values = x.numel();
  float* const y = static_cast<float*>(outputs[0].data);
  if (values == 0) return;
  divide(values / size, size, lease, [&](int64_t first, int64_t count) {
    kernels_.softmax(is_log_, input(inputs) + first * size, count, size, y + first * size);
  });
}

}  // namespace fastgraph
