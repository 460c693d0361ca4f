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

// Small groups share panels where they fill them, and all of k is one block.
ConvGeometry with_spread_groups(ConvGeometry g) {
  const int64_t size = g.group_inputs();
  const bool fits = g.groups > 1 && size == g.group_outputs() && g.in_channels % kConvLanes == 0;
  if (!fits || (size != 4 && size != 8) || g.taps() > kMaxSumBlock) return g;
  g.spread = size;
  g.groups = g.in_channels / kConvLanes;
  return g;
}

// Whether the layer has Winograd's form too. With 16 x 16 channels the transforms take more than what is saved (128 x 128 pixels on Zen 4:
// 0.75 of the direct sum's speed; 16 x 32 1.0, 32 x 32 1.3, 64 x 64 1.9).
bool has_winograd_form(const ConvGeometry& g) {
  const bool is_3x3 = g.kernel_h == 3 && g.kernel_w == 3, is_dense = g.dilation_h == 1 && g.dilation_w == 1;
  return is_3x3 && is_dense && g.stride_h == 1 && g.stride_w == 1 && g.groups == 1 && !g.spread &&
         g.in_channels >= kConvLanes && g.out_channels >= kConvLanes && g.in_channels * g.out_channels >= 2 * kConvLanes * kConvLanes;
}

// to[panel][tap][channel][16]; `weight(o, c, tap)`
template <class Weight>
void pack_direct(const ConvGeometry& g, const Weight& weight, float* to) {
  const int64_t outputs = g.group_outputs(), kernel = g.kernel_h * g.kernel_w, inputs = g.taps() / std::max<int64_t>(kernel, 1);
  for (int64_t group = 0; group < g.groups; group++)
    for (int64_t first = 0; first < g.group_panels() * kConvLanes; first += kConvLanes)
      for (int64_t tap = 0; tap < kernel; tap++)
        for (int64_t c = 0; c < inputs; c++)
          for (int64_t o = first; o < first + kConvLanes; o++) *to++ = o < outputs ? weight(group * outputs + o, c, tap) : 0.0f;
}

// to[panel][position][channel][16]: G g G^T, in double precision and rounded once. Returns the largest sum of absolute weights that an
// output channel has at one position.
template <class Weight>
double pack_winograd(const ConvGeometry& g, const Weight& weight, float* to) {
  constexpr double G[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  const int64_t C = g.in_channels;
  std::vector<double> sums(16);
  double largest = 0;
  for (int64_t o = 0; o < g.group_panels() * kConvLanes; o++) {
    float* const panel = to + o / kConvLanes * 16 * C * kConvLanes + o % kConvLanes;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t c = 0; c < C; c++) {
      double taps[9], half[4][3];
      for (int64_t tap = 0; tap < 9; tap++) taps[tap] = o < g.out_channels ? double(weight(o, c, tap)) : 0;
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++) half[i][j] = G[i][0] * taps[j] + G[i][1] * taps[3 + j] + G[i][2] * taps[6 + j];
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
          const double value = half[i][0] * G[j][0] + half[i][1] * G[j][1] + half[i][2] * G[j][2];
          panel[((i * 4 + j) * C + c) * kConvLanes] = float(value);
          sums[size_t(i * 4 + j)] += std::abs(value);
        }
    }
    for (double sum : sums) largest = sum <= largest ? largest : sum;  // NaN stays
  }
  return largest;
}

// The largest pixel up to which nothing in Winograd's sums overflows: transformed pixels are up to four times a pixel, and an output adds
// up nine sums. Negative where weights are not finite, or close to either end of the range: transformed ones are rounded too.
float largest_pixel(double weights, const float* bias, int64_t count) {
  if (weights < 0x1p-100) return -1;
  double largest = 0;
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::abs(double(bias[i])));
  const double room = (0x1p125 - largest) / (1 + 36 * weights);
  return room > 0 ? float(room) : -1;
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
    : layer_{with_spread_groups(geometry), nullptr, nullptr, nullptr, nullptr, 0, &kernels}, storage_(nullptr, free) {
  const ConvGeometry& g = layer_.geometry;
  const int64_t panels = panel_count(g), direct = panels * g.taps() * kConvLanes;
  const int64_t winograd = has_winograd_form(g) ? 16 * g.in_channels * panels * kConvLanes : 0;
  floats_ = direct + winograd + panels * kConvLanes + (g.in_channels + kConvLanes) / kConvLanes * kConvLanes;
  storage_ = weight_floats(floats_);
  const auto value = [&](int64_t o, int64_t c, int64_t tap) {
    const int64_t at = (o * geometry.group_inputs() + c) * g.kernel_h * g.kernel_w + tap;
    return bf16 ? widen(static_cast<const uint16_t*>(weight)[at]) : static_cast<const float*>(weight)[at];
  };
  float* next = storage_.get();
  pack_direct(g, value, next);
  layer_.direct = next;
  next += direct;
  const double weights = winograd ? pack_winograd(g, value, next) : 0;
  layer_.winograd = winograd ? next : nullptr;
  next += winograd;
  std::fill(next, storage_.get() + floats_, 0.0f);
  for (int64_t o = 0; bias && o < g.out_channels; o++)
    next[o / g.group_outputs() * g.group_panels() * kConvLanes + o % g.group_outputs()] = static_cast<const float*>(bias)[o];
  layer_.bias = next;
  layer_.zeros = next + panels * kConvLanes;
  layer_.largest_pixel = largest_pixel(weights, layer_.bias, panels * kConvLanes);
  if (layer_.largest_pixel < 0) layer_.winograd = nullptr;
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
  if (takes_winograd(layer_, call)) run_winograd(layer_, epilogue, call, lease);
  else run_direct(layer_, epilogue, call, lease);
}

}  // namespace fastgraph
