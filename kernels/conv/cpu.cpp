// conv on the CPU: packing, and what a call is.
#include "cpu.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "../cpu/bf16.h"
#include "products.h"

namespace fastgraph {
namespace {

constexpr int64_t kHugePage = int64_t(2) << 20;  // bytes

// In huge pages where there are any and they fit: panels that are read line after line from L3 wait for their translation else.
AlignedFloats weight_floats(int64_t floats) {
  const bool is_large = floats * int64_t(sizeof(float)) >= kHugePage;
  AlignedFloats data = aligned_floats(floats, is_large ? size_t(kHugePage) : 64);
  if (is_large) madvise(data.get(), size_t(floats) * sizeof(float), MADV_HUGEPAGE);
  return data;
}

int64_t panel_count(const ConvGeometry& g) { return g.groups * g.group_panels(); }

// Winograd's form of a layer that can have one.
bool has_winograd_form(const ConvGeometry& g) {
  const bool is_3x3 = g.kernel_h == 3 && g.kernel_w == 3, is_dense = g.dilation_h == 1 && g.dilation_w == 1;
  return is_3x3 && is_dense && g.stride_h == 1 && g.stride_w == 1 && g.groups == 1 && g.in_channels >= kConvLanes && g.out_channels >= kConvLanes;
}

// to[panel][tap][channel][16]; `weight(o, c, tap)`
template <class Weight>
void pack_direct(const ConvGeometry& g, const Weight& weight, float* to) {
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  for (int64_t group = 0; group < g.groups; group++)
    for (int64_t first = 0; first < g.group_panels() * kConvLanes; first += kConvLanes)
      for (int64_t tap = 0; tap < g.kernel_h * g.kernel_w; tap++)
        for (int64_t c = 0; c < inputs; c++)
          for (int64_t o = first; o < first + kConvLanes; o++) *to++ = o < outputs ? weight(group * outputs + o, c, tap) : 0.0f;
}

}  // namespace

ConvEpilogue::ConvEpilogue(bool residual, const std::vector<ActivationCall>& calls) : residual(residual) {
  for (const ActivationCall& call : calls) {
    if (call.kind == Activation::softmax || call.kind == Activation::log_softmax) throw std::invalid_argument("activations: softmax cannot follow a convolution");
    if (call.kind == Activation::none) continue;
    const bool is_first = activations.empty() && std::isinf(low) && std::isinf(high);
    if (is_first && call.kind == Activation::relu) low = 0;
    else if (is_first && call.kind == Activation::clamp) low = call.a, high = call.b;
    else activations.push_back(call);
  }
}

ConvCall::ConvCall(const ConvGeometry& g, const View* inputs, const View* outputs, bool has_residual) {
  const View &in = inputs[0], &out = outputs[0];
  const int last = in.rank - 1;
  const auto stride = [](const View& v, int axis) { return v.sizes[axis] > 1 ? v.strides[axis] : 0; };
  // From one pixel to the next: that of the first axis, from the last on, of which there are several.
  const auto pixel = [&](const View& v, int64_t channels) {
    for (int axis : {v.rank - 1, v.rank - 2, 0})
      if (axis != 1 && v.sizes[axis] > 1) return v.strides[axis];
    return channels;
  };
  x = static_cast<const float*>(in.data);
  y = static_cast<float*>(out.data);
  residual = has_residual ? static_cast<const float*>(inputs[1].data) : nullptr;
  batch = in.sizes[0];
  height = in.rank == 4 ? in.sizes[2] : 1;
  width = in.sizes[last];
  image_stride = stride(in, 0);
  row_stride = in.rank == 4 ? stride(in, 2) : 0;
  channel_stride = g.in_channels > 1 ? in.strides[1] : 1;
  pixel_stride = channel_stride == 1 ? pixel(in, g.in_channels) : stride(in, last);
  y_stride = pixel(out, g.out_channels);
  residual_stride = has_residual ? pixel(inputs[1], g.out_channels) : 0;
  out_height = g.out_height(height);
  out_width = g.out_width(width);
  if (out_height < 1 || out_width < 1) throw std::invalid_argument("conv: the map is smaller than the kernel");
}

Conv::Conv(const ConvGeometry& geometry, const void* weight, const void* bias, bool bf16, const ConvKernels& kernels)
    : layer_{geometry, nullptr, nullptr, nullptr, nullptr, 0, &kernels}, storage_(nullptr, free) {
  const ConvGeometry& g = geometry;
  const int64_t panels = panel_count(g), direct = panels * g.taps() * kConvLanes;
  floats_ = direct + panels * kConvLanes + (g.in_channels + kConvLanes) / kConvLanes * kConvLanes;
  storage_ = weight_floats(floats_);
  const auto value = [&](int64_t o, int64_t c, int64_t tap) {
    const int64_t at = (o * g.group_inputs() + c) * g.kernel_h * g.kernel_w + tap;
    return bf16 ? widen(static_cast<const uint16_t*>(weight)[at]) : static_cast<const float*>(weight)[at];
  };
  float* next = storage_.get();
  pack_direct(g, value, next);
  layer_.direct = next;
  next += direct;
  std::fill(next, storage_.get() + floats_, 0.0f);
  for (int64_t o = 0; bias && o < g.out_channels; o++)
    next[o / g.group_outputs() * g.group_panels() * kConvLanes + o % g.group_outputs()] = static_cast<const float*>(bias)[o];
  layer_.bias = next;
  layer_.zeros = next + panels * kConvLanes;
}

double Conv::estimate_ns(const View* inputs) const {
  const View& x = inputs[0];
  const ConvGeometry& g = layer_.geometry;
  const int64_t pixels = x.sizes[0] * g.out_height(x.rank == 4 ? x.sizes[2] : 1) * g.out_width(x.sizes[x.rank - 1]);
  const double lanes = double(panel_count(g) * kConvLanes);
  return std::max(double(pixels) * lanes * double(g.taps()) / 40, double(packed_bytes()) / 12);
}

void Conv::run(const ConvEpilogue& epilogue, const View* inputs, const View* outputs, Lease& lease) const {
  const ConvCall call(layer_.geometry, inputs, outputs, epilogue.residual);
  if (call.batch == 0 || layer_.geometry.out_channels == 0) return;
  run_direct(layer_, epilogue, call, lease);
}

}  // namespace fastgraph
