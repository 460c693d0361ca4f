// Pools on the CPU: sizes, and the division of a call into spans.
#include "cpu.h"

#include <algorithm>
#include <stdexcept>

namespace fastgraph {
namespace {

// One thread's time, roughly: values looked at in the first level cache, and what goes through the second.
double work_ns(double values, double floats) { return values / 32 + floats / 20; }

int64_t output_height(const PoolGeometry& g, int64_t size) {
  const Window& w = g.window;
  return window_count(size, w.kernel_h, w.stride_h, w.pad_top, w.pad_bottom, w.dilation_h, g.ceil_mode);
}
int64_t output_width(const PoolGeometry& g, int64_t size) {
  const Window& w = g.window;
  return window_count(size, w.kernel_w, w.stride_w, w.pad_left, w.pad_right, w.dilation_w, g.ceil_mode);
}

void check_kind(PoolKind kind) {
  if (kind != PoolKind::max && kind != PoolKind::average) throw std::invalid_argument("pool: kind has to be 0 (max) or 1 (average)");
}

void check_sizes(const Map& x, const Map& y, int64_t height, int64_t width) {
  if (x.channels != y.channels || x.images != y.images || y.height != height || y.width != width)
    throw std::invalid_argument("pool: needs a result of the sizes that follow from the input's");
}

}  // namespace

Pool::Pool(const PoolGeometry& geometry, const PoolKernels& kernels) : geometry_(geometry), kernels_(kernels) {
  const Window& w = geometry.window;
  check_kind(geometry.kind);
  if (std::min({w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w}) < 1)
    throw std::invalid_argument("pool: kernel, stride and dilation have to be positive");
  if (std::min(w.pad_top, w.pad_left) < 0) throw std::invalid_argument("pool: padding must not be negative");
  if (geometry.kind == PoolKind::average && w.dilation_h * w.dilation_w != 1) throw std::invalid_argument("pool: averages have no dilation");
}

double Pool::estimate_ns(const View* inputs) const {
  const Map x(inputs[0]);
  const Window& w = geometry_.window;
  const double results = double(x.images * output_height(geometry_, x.height) * output_width(geometry_, x.width) * x.channels);
  return work_ns(results * double(w.kernel_h * w.kernel_w), results + double(x.pixels() * x.channels));
}

void Pool::run(const View* inputs, const View* outputs, Lease& lease) const {
  const Map x(inputs[0]), y(outputs[0]);
  check_sizes(x, y, output_height(geometry_, x.height), output_width(geometry_, x.width));
  for_spans(y, estimate_ns(inputs), lease, [&](const Span& span) { kernels_.span(geometry_, x, y, span); });
}

AdaptivePool::AdaptivePool(PoolKind kind, int64_t height, int64_t width, const PoolKernels& kernels)
    : kind_(kind), height_(height), width_(width), kernels_(kernels) {
  check_kind(kind);
}

double AdaptivePool::estimate_ns(const View* inputs) const {
  const Map x(inputs[0]);
  const double results = double(x.images * height_ * width_ * x.channels), values = double(x.pixels() * x.channels);
  return std::max(results, values) / 48 + (results + values) / 40;  // a pixel after the other, in few long runs
}

void AdaptivePool::run(const View* inputs, const View* outputs, Lease& lease) const {
  const Map x(inputs[0]), y(outputs[0]);
  check_sizes(x, y, height_, width_);
  if (x.height == 0 || x.width == 0) throw std::invalid_argument("adaptive pool: needs an input with pixels");
  for_spans(y, estimate_ns(inputs), lease, [&](const Span& span) { kernels_.adaptive_span(kind_, x, y, span); });
}

}  // namespace fastgraph
