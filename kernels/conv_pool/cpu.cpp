// conv_pool on the CPU: sizes, and the division of a call into strips of pooled rows.
#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "../cpu/arena.h"
#include "../cpu/bf16.h"

namespace fastgraph {
namespace {

constexpr int64_t kLanes = 16;

// Pooled rows in a strip: neighbouring strips compute pool_kernel_h - pool_stride_h convolution rows twice (4 % of Net at
// 12), while transformed columns should stay in L1, padded images and vertical maxima in L2.
constexpr int64_t kStripRows = 12;
constexpr int64_t kWindowFloats = 64 * 1024;
constexpr int64_t kMaximaFloats = 128 * 1024;

// Weights of the channels that one column of the image meets before the next: they stay in L2, those of one tile in L1.
constexpr int64_t kGroupWeights = 32 * 1024;
constexpr int64_t kMinGroup = 24;  // several whole tiles of channels on any ISA

// Longest sum in the transformed domain: rounding errors of longer ones would show (see winograd.h).
constexpr int64_t kMaxWinogradTaps = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a) { return ceil_div(a, kLanes) * kLanes; }

int64_t conv_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// As torch.nn.MaxPool2d: with ceil_mode a last window may reach beyond the padding, but must begin inside the input or its left padding.
int64_t pool_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t span = size + 2 * padding - kernel;
  if (span < 0 && !(ceil_mode && span > -stride)) return 0;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) out--;
  return out;
}

// For winograd.h: from [O][C][kernel_h][3] to [m1 and m2, then even and odd][kernel_h][C][O][2].
std::vector<float> winograd_weight(const ConvPoolGeometry& g, const std::vector<float>& weight) {
  const int64_t taps = g.in_channels * g.kernel_h;
  if (g.kernel_w != 3 || g.stride_w != 1 || g.dilation_w != 1 || g.dilation_h != 1 || taps > kMaxWinogradTaps) return {};
  std::vector<float> transformed(size_t(4 * taps * g.out_channels));
  for (int64_t o = 0; o < g.out_channels; o++)
    for (int64_t c = 0; c < g.in_channels; c++)
      for (int64_t y = 0; y < g.kernel_h; y++) {
        const float* w = weight.data() + ((o * g.in_channels + c) * g.kernel_h + y) * 3;
        const double left = w[0], middle = w[1], right = w[2];
        const double phases[4] = {(left + middle + right) / 2, (left - middle + right) / 2, left, -right};
        for (double phase : phases)  // the sum of weights near the end of the range is beyond it
          if (!(std::abs(phase) <= double(std::numeric_limits<float>::max()))) return {};
        for (int64_t phase = 0; phase < 4; phase++)
          transformed[size_t((((phase / 2 * g.kernel_h + y) * g.in_channels + c) * g.out_channels + o) * 2 + phase % 2)] = float(phases[phase]);
      }
  return transformed;
}

// winograd_weight rounded to bf16, taps in pairs: of an odd number the last pair is the tap before it, with weight zero, and it.
std::vector<uint32_t> pair_up(const ConvPoolGeometry& g, const std::vector<float>& winograd) {
  const size_t taps = size_t(g.in_channels * g.kernel_h), row = size_t(2 * g.out_channels), steps = (taps + 1) / 2;
  if (winograd.empty() || taps < 2) return {};
  std::vector<uint32_t> pairs(2 * steps * row);
  for (size_t half = 0; half < 2; half++)
    for (size_t step = 0; step < steps; step++)
      for (size_t i = 0; i < row; i++) {
        const auto at = [&](size_t tap) { return uint32_t(narrow(winograd[(half * taps + tap) * row + i])); };
        const bool odd = 2 * step + 1 == taps;
        pairs[(half * steps + step) * row + i] = odd ? at(2 * step) << 16 : at(2 * step) | at(2 * step + 1) << 16;
      }
  return pairs;
}

// The absolute weights of one output channel: their sum, and the root of the sum of their squares.
struct Norms {
  double sum = 0, root = 0;
  Norms(const std::vector<float>& weight, int64_t taps, size_t channel) {
    for (size_t k = channel * size_t(taps); k < (channel + 1) * size_t(taps); k++) {
      const double w = weight[k];
      sum += std::abs(w);
      root += w * w;
    }
    root = std::sqrt(root);
  }
};

}  // namespace

ConvPool::ConvPool(const ConvPoolGeometry& geometry, const float* weight, const float* bias, bool bf16, const ConvPoolKernels& kernels)
    : geometry_(geometry),
      kernels_(kernels),
      weight_(weight, weight + geometry.out_channels * geometry.in_channels * geometry.kernel_h * geometry.kernel_w),
      winograd_(winograd_weight(geometry, weight_)),
      bias_(size_t(geometry.out_channels), 0.0f) {
  if (bias) bias_.assign(bias, bias + geometry.out_channels);
  constexpr double limit = 0x1p125;  // room for a transformed pixel (twice a pixel) and for a sum of two sums
  const int64_t taps = geometry.in_channels * geometry.kernel_h * geometry.kernel_w;
  double bound = limit, largest = 0;
  for (size_t o = 0; o < bias_.size(); o++) {
    const Norms norms(weight_, taps, o);
    const double room = (limit - std::abs(double(bias_[o]))) / (1 + 2 * norms.sum);
    bound = room > 0 ? std::min(bound, room) : -1;
    if (bound < 0) break;  // weights that are not finite, or close to the end of the range
    largest = std::max(largest, norms.root);
  }
  bound_ = float(bound);
  if (!(bound_ > 0)) winograd_.clear();
  if (bf16 && kernels.dots) winograd_pairs_ = pair_up(geometry_, winograd_);
  if (!winograd_pairs_.empty()) winograd_.clear();
  weight_norm_ = float(largest);
}

ConvPoolShape ConvPool::shape(int64_t height, int64_t width, int64_t batch, int threads) const {
  const ConvPoolGeometry& g = geometry_;
  ConvPoolShape s{};
  s.g = g;
  s.height = height;
  s.width = width;
  s.conv_height = conv_size(height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  s.conv_width = conv_size(width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  s.out_height = s.conv_height ? pool_size(s.conv_height, g.pool_kernel_h, g.pool_stride_h, g.pool_padding_h, g.ceil_mode) : 0;
  s.out_width = s.conv_width ? pool_size(s.conv_width, g.pool_kernel_w, g.pool_stride_w, g.pool_padding_w, g.ceil_mode) : 0;
  if (s.out_height < 1 || s.out_width < 1) throw std::invalid_argument("conv_pool: the image is smaller than the kernel and the pool");
  s.taps = g.in_channels * g.kernel_h * g.kernel_w;
  s.phase_width = round_up(round_up(s.conv_width) + (g.kernel_w - 1) * g.dilation_w / g.stride_w);
  s.open_rows = ceil_div(g.pool_kernel_h, g.pool_stride_h);
  s.beyond = (s.out_width - 1) * g.pool_stride_w - g.pool_padding_w + g.pool_kernel_w > s.conv_width;
  // A row of maxima with what vectors and windows touch beyond its ends: an odd number of cache lines, or the same columns
  // of all rows would meet in a few sets of L1.
  const int64_t columns = ceil_div(s.conv_width, 2 * kLanes) * 2 * kLanes;
  const int64_t reads = std::min<int64_t>(g.pool_stride_w, 2) * round_up(s.out_width) + g.pool_kernel_w;
  const int64_t floats = kMaximaMargin + round_up(std::max({columns, s.conv_width + g.pool_kernel_w, reads}));
  s.maxima_width = ceil_div(floats, 2 * kLanes) * 2 * kLanes + kLanes;

  const bool winograd = has_winograd(), in_registers = winograd && pools_pairs(g);
  const auto image_rows = [&](int64_t rows) {
    return ((rows - 1) * g.pool_stride_h + g.pool_kernel_h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
  };
  const auto padded_floats = [&](int64_t rows) { return g.in_channels * image_rows(rows) * g.stride_w * s.phase_width; };
  const auto window_floats = [&](int64_t rows) {
    return winograd ? g.in_channels * image_rows(rows) * kWinogradCell : padded_floats(rows);
  };
  // Strips: as equal as possible, and a multiple of the threads in number.
  int64_t rows = std::min(kStripRows, s.out_height);
  while (rows > 1 && window_floats(rows) > kWindowFloats) rows = (rows + 1) / 2;
  const int64_t strips = ceil_div(batch * ceil_div(s.out_height, rows), threads) * threads;
  s.strip_rows = std::max<int64_t>(1, std::min(rows, ceil_div(s.out_height, std::max<int64_t>(1, strips / std::max<int64_t>(1, batch)))));
  // Where Winograd computes, a padded window and, if the pool is done in registers, maxima are for single rows (kReach).
  s.window_rows = image_rows(winograd ? 1 : s.strip_rows);
  s.maxima_rows = in_registers ? 1 : s.strip_rows;
  const int64_t group = std::max(kMinGroup, std::min(kMaximaFloats / (s.maxima_rows * s.maxima_width), kGroupWeights / s.taps));
  s.group_channels = ceil_div(g.out_channels, ceil_div(g.out_channels, group));
  s.window_floats = round_up(std::max(window_floats(s.strip_rows), padded_floats(winograd ? 1 : s.strip_rows)) + kLanes);
  const int64_t bounds = kLanes * image_rows(s.strip_rows), carries = in_registers ? g.out_channels * image_rows(s.strip_rows) : 0;
  s.scratch_floats = s.maxima_rows * s.group_channels * s.maxima_width + s.window_floats + bounds + carries;
  return s;
}

ConvPoolStrips ConvPool::strips(const View& x, int threads) const {
  const ConvPoolGeometry& g = geometry_;
  const ConvPoolShape s = shape(x.sizes[2], x.sizes[3], x.sizes[0], threads);
  std::vector<int64_t> offsets(size_t(2 * s.taps));
  int64_t k = 0;
  for (int64_t c = 0; c < g.in_channels; c++)
    for (int64_t y = 0; y < g.kernel_h; y++)
      for (int64_t x = 0; x < g.kernel_w; x++, k++) {
        const int64_t column = x * g.dilation_w, row = y * g.dilation_h;
        offsets[size_t(k)] = 4 * (((c * s.window_rows + row) * g.stride_w + column % g.stride_w) * s.phase_width + column / g.stride_w);
        offsets[size_t(s.taps + k)] = 4 * ((c * s.height + row) * s.width + column);
      }
  const int64_t *window_offsets = offsets.data(), *image_offsets = window_offsets + s.taps;
  return {{s, weight_.data(), winograd_.empty() ? nullptr : winograd_.data(), winograd_pairs_.empty() ? nullptr : winograd_pairs_.data(),
           bias_.data(), bound_, weight_norm_, window_offsets, image_offsets},
          std::move(offsets), static_cast<const float*>(x.data), x.sizes[0], ceil_div(s.out_height, s.strip_rows)};
}

ConvPoolStrip ConvPool::strip(const ConvPoolStrips& strips, int64_t chunk) const {
  const ConvPoolShape& s = strips.call.shape;
  const int64_t first = chunk % strips.per_image * s.strip_rows;
  return {chunk / strips.per_image, first, std::min(s.strip_rows, s.out_height - first)};
}

void ConvPool::run_strip(const ConvPoolStrips& strips, const ConvPoolStrip& strip, float* out, int64_t out_channel, float* scratch) const {
  const int64_t image_floats = geometry_.in_channels * strips.call.shape.height * strips.call.shape.width;
  kernels_.strip(strips.call, strips.images + strip.image * image_floats, (strips.batch - strip.image) * image_floats, strip.first, strip.count,
                 out, out_channel, scratch);
}

double ConvPool::estimate_ns(const View* inputs) const {
  const ConvPoolGeometry& g = geometry_;
  const int64_t* sizes = inputs[0].sizes;
  const int64_t height = conv_size(sizes[2], g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  const int64_t width = conv_size(sizes[3], g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  return double(sizes[0] * height * width) * double(g.out_channels * g.in_channels * g.kernel_h * g.kernel_w) / 16;
}

void ConvPool::run(const View* inputs, const View* outputs, Lease& lease) const {
  const ConvPoolStrips all = strips(inputs[0], lease.threads());
  const ConvPoolShape& s = all.call.shape;
  const int64_t out_floats = s.out_height * s.out_width;
  auto* const y = static_cast<float*>(outputs[0].data);
  lease.run(all.count(), [&](int64_t chunk) {
    const ConvPoolStrip one = strip(all, chunk);
    float* out = y + one.image * geometry_.out_channels * out_floats + one.first * s.out_width;
    run_strip(all, one, out, out_floats, thread_arena(s.scratch_floats));
  });
}

}  // namespace fastgraph
