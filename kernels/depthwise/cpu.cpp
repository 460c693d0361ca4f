// Depthwise convolution on the CPU: packing, and the division of a call into spans.
#include "cpu.h"

#include <algorithm>
#include <stdexcept>

#include "../cpu/arena.h"
#include "../cpu/elementwise.h"

namespace fastgraph {
namespace {

constexpr int64_t kLanes = 16;

// One thread's time, roughly: multiply-adds in the first level cache, and what goes through the second.
double work_ns(double multiply_adds, double floats) { return multiply_adds / 50 + floats / 20; }

int64_t output_height(const Window& w, int64_t size) { return window_count(size, w.kernel_h, w.stride_h, w.pad_top, w.pad_bottom, w.dilation_h); }
int64_t output_width(const Window& w, int64_t size) { return window_count(size, w.kernel_w, w.stride_w, w.pad_left, w.pad_right, w.dilation_w); }

}  // namespace

Depthwise::Depthwise(const DepthwiseGeometry& geometry, const float* weight, const float* bias, const DepthwiseKernels& kernels)
    : geometry_(geometry), packed_(nullptr, free), kernels_(kernels) {
  const Window& w = geometry.window;
  const int64_t channels = geometry.out_channels, taps = w.kernel_h * w.kernel_w;
  if (geometry.in_channels < 1 || channels < 1 || channels % geometry.in_channels != 0)
    throw std::invalid_argument("depthwise: out_channels has to be a multiple of in_channels");
  if (std::min({w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w}) < 1)
    throw std::invalid_argument("depthwise: kernel, stride and dilation have to be positive");
  if (std::min({w.pad_top, w.pad_left, w.pad_bottom, w.pad_right}) < 0) throw std::invalid_argument("depthwise: padding must not be negative");
  const int64_t vectors = (channels + kLanes - 1) / kLanes;
  bias_at_ = vectors * taps * kLanes;
  packed_floats_ = bias_at_ + vectors * kLanes;
  packed_ = aligned_floats(packed_floats_);
  std::fill(packed_.get(), packed_.get() + packed_floats_, 0.0f);
  float* to = packed_.get();
  for (int64_t v = 0; v < vectors; v++) {
    const int64_t first = std::max<int64_t>(0, std::min(v * kLanes, channels - kLanes));
    for (int64_t k = 0; k < taps; k++, to += kLanes)
      for (int64_t o = first; o < std::min(first + kLanes, channels); o++) to[o - first] = weight[o * taps + k];
  }
  if (bias) std::copy(bias, bias + channels, to);
}

double Depthwise::estimate_ns(const View* inputs) const {
  const Map x(inputs[0]);
  const Window& w = geometry_.window;
  const double pixels = double(x.images * output_height(w, x.height) * output_width(w, x.width)), channels = double(geometry_.out_channels);
  return work_ns(pixels * channels * double(w.kernel_h * w.kernel_w), pixels * channels + double(x.pixels() * x.channels));
}

void Depthwise::run(const View* inputs, const View* outputs, Lease& lease) const { run(inputs, outputs, lease, false, {}); }

void Depthwise::run(const View* inputs, const View* outputs, Lease& lease, bool residual, const std::vector<ActivationCall>& activations) const {
  const Map x(inputs[0]), y(outputs[0]), other(inputs[residual ? 1 : 0]);
  const Window& w = geometry_.window;
  if (x.channels != geometry_.in_channels || y.channels != geometry_.out_channels || y.height != output_height(w, x.height) ||
      y.width != output_width(w, x.width))
    throw std::invalid_argument("depthwise: needs a result of the sizes that follow from the input's");
  const ActivationList list(activations);
  const DepthwiseCall call{w, packed_.get(), w.kernel_h * w.kernel_w * kLanes, packed_.get() + bias_at_, list};
  for_spans(y, estimate_ns(inputs), lease, [&](const Span& span) {
    if (x.channels == y.channels) return kernels_.span(call, x, residual ? &other : nullptr, y, span);
    widen(call, x, residual ? &other : nullptr, y, span);
  });
}

// Several output channels on each input channel: on a copy of what the span sees, with every channel as often as it is read.
void Depthwise::widen(DepthwiseCall call, const Map& x, const Map* residual, const Map& y, const Span& span) const {
  const Window w = call.window;
  const int64_t top = span.row * w.stride_h - w.pad_top, left = span.first * w.stride_w - w.pad_left;
  int64_t first_tap = 0, end_tap = w.kernel_h;
  while (first_tap < end_tap && top + first_tap * w.dilation_h < 0) first_tap++;
  while (first_tap < end_tap && top + (end_tap - 1) * w.dilation_h >= x.height) end_tap--;
  const int64_t begin = std::clamp<int64_t>(left, 0, x.width);
  const int64_t end = std::clamp<int64_t>(left + (span.last - 1 - span.first) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1, begin, x.width);
  Map copy = x, to = y;
  copy.images = 1, copy.height = end_tap - first_tap, copy.width = end - begin, copy.channels = copy.pixel = y.channels;
  copy.data = thread_arena(copy.pixels() * y.channels);
  float* next = copy.data;
  for (int64_t tap = first_tap; tap < end_tap; tap++)
    for (int64_t column = begin; column < end; column++) {
      const float* from = x.row(span.image, top + tap * w.dilation_h) + column * x.pixel;
      for (int64_t c = 0; c < x.channels; c++) next = std::fill_n(next, y.channels / x.channels, from[c]);
    }
  call.panels += first_tap * w.kernel_w * kLanes;
  call.window.kernel_h = copy.height, call.window.dilation_h = 1, call.window.pad_top = 0, call.window.pad_left += begin;
  to.data = y.row(span.image, span.row);
  Map other = residual ? *residual : y;
  other.data = other.row(span.image, span.row);
  kernels_.span(call, copy, residual ? &other : nullptr, to, {0, 0, span.first, span.last, span.begin, span.end});
}

DepthwiseWith::DepthwiseWith(const Depthwise& depthwise, bool residual, const std::vector<ActivationCall>& activations)
    : depthwise_(depthwise), residual_(residual), activations_(activations) {
  check_elementwise(activations, "depthwise");
}

}  // namespace fastgraph
