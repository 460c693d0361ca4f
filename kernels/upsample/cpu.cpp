// Resizing on the CPU: where pixels come from, and the division of a call into spans.
#include "cpu.h"

#include <math.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace fastgraph {

Upsample::Upsample(const UpsampleGeometry& geometry, const UpsampleKernels& kernels) : geometry_(geometry), kernels_(kernels) {
  if (geometry.mode < UpsampleMode::nearest || geometry.mode > UpsampleMode::nearest_exact)
    throw std::invalid_argument("upsample: mode has to be 0 (nearest), 1 (linear) or 2 (nearest-exact)");
}

// In single precision, as ATen's nearest_neighbor_compute_source_index, area_pixel_compute_source_index and guard_index_and_lambda
// (UpSample.h): which pixel is meant depends on the rounding. Its kernels are compiled with fused multiply-adds.
Source Upsample::source(int64_t i, float scale, int64_t in, int64_t out) const {
  const auto nearest = [&](float place) {
    const int64_t pixel = std::clamp<int64_t>(int64_t(floorf(place)), 0, in - 1);
    return Source{{pixel, pixel}, {1, 0}};
  };
  if (geometry_.mode == UpsampleMode::nearest) return nearest(float(i) * scale);
  if (geometry_.mode == UpsampleMode::nearest_exact) return nearest(float((double(i) + 0.5) * double(scale)));
  if (in == out) return {{i, i}, {1, 0}};
  const float place = geometry_.align_corners ? scale * float(i) : std::max(0.0f, fmaf(scale, float(i) + 0.5f, -0.5f));
  const int64_t pixel = std::min(int64_t(floorf(place)), in - 1);
  const float weight = std::min(std::max(place - float(pixel), 0.0f), 1.0f);
  return {{pixel, std::min(pixel + 1, in - 1)}, {1.0f - weight, weight}};
}

// One thread's time, roughly: what is read is in the first level cache, what is written goes through the second. Scales are those of the
// result only where they were not given for it.
double Upsample::estimate_ns(const View* inputs) const {
  const Map x(inputs[0]);
  const auto grown = [](int64_t size, float scale) { return scale > 0 ? double(size) / double(scale) : 1.0; };
  const double rows = inputs[0].rank == 4 ? grown(x.height, geometry_.height_scale) : 1;
  return double(x.images * x.channels) * rows * grown(x.width, geometry_.width_scale) / 10;
}

void Upsample::run(const View* inputs, const View* outputs, Lease& lease) const {
  const Map x(inputs[0]), y(outputs[0]);
  if (x.channels != y.channels || x.images != y.images) throw std::invalid_argument("upsample: needs a result of the input's batch and channels");
  if (x.height == 0 || x.width == 0) throw std::invalid_argument("upsample: needs an input with pixels");
  std::vector<Source> columns;
  columns.reserve(size_t(y.width));
  for (int64_t i = 0; i < y.width; i++) columns.push_back(source(i, geometry_.width_scale, x.width, y.width));
  const bool is_linear = geometry_.mode == UpsampleMode::linear, is_flat = inputs[0].rank == 3;
  const auto span_of = !is_linear ? kernels_.nearest_span : is_flat ? kernels_.linear_span : kernels_.bilinear_span;
  for_spans(y, estimate_ns(inputs), lease, [&](const Span& span) {
    const Source rows = is_flat ? Source{{0, 0}, {1, 0}} : source(span.row, geometry_.height_scale, x.height, y.height);
    span_of(x, y, rows, columns.data() + span.first, span);
  });
}

}  // namespace fastgraph
