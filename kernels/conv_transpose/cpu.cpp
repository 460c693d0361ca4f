// Transposed convolution on the CPU: packing, and the division of a call into products.
#include "cpu.h"

#include <algorithm>
#include <stdexcept>

#include "../cpu/arena.h"
#include "../cpu/elementwise.h"

namespace fastgraph {
namespace {

// Pixels of one product: enough to pay for reading the weights once more, and their sums stay in L2.
constexpr int64_t kBlockPixels = 96;

// Where all weights stay in L2, the taps of a block of pixels follow each other, else the blocks of a tap.
constexpr int64_t kCachedBytes = 512 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

ConvTranspose::ConvTranspose(int64_t in_channels, int64_t out_channels, int64_t height, int64_t width, const float* weight, const float* bias,
                             const GemmKernels& gemm, const ConvTransposeKernels& kernels)
    : in_channels_(in_channels), out_channels_(out_channels), height_(height), width_(width), storage_(nullptr, free), gemm_(gemm), kernels_(kernels) {
  if (std::min({in_channels, out_channels, height, width}) < 1) throw std::invalid_argument("conv_transpose: sizes have to be positive");
  GemmLayer layer{};
  layer.in_features = in_channels;
  layer.out_features = out_channels;
  layer.panel_count = ceil_div(out_channels, kPanel);
  const int64_t taps = height * width, words = gemm.format->words(layer), bias_words = layer.panel_count * kPanel;
  packed_words_ = taps * words + bias_words;
  storage_ = aligned_floats(packed_words_);
  float* packed_bias = storage_.get() + taps * words;
  std::fill(packed_bias, packed_bias + bias_words, 0.0f);
  if (bias) std::copy(bias, bias + out_channels, packed_bias);
  layer.bias = packed_bias;
  std::vector<float> matrix(size_t(out_channels * in_channels));
  for (int64_t tap = 0; tap < taps; tap++) {
    for (int64_t o = 0; o < out_channels; o++)
      for (int64_t c = 0; c < in_channels; c++) matrix[size_t(o * in_channels + c)] = weight[(c * out_channels + o) * taps + tap];
    float* panels = storage_.get() + tap * words;
    gemm.format->pack(layer, matrix.data(), panels);
    layer.panels = panels;
    taps_.push_back(layer);
  }
}

double ConvTranspose::estimate_ns(const View* inputs) const {
  const double multiply_adds = double(Map(inputs[0]).pixels()) * double(height_ * width_ * in_channels_ * out_channels_);
  return std::max(multiply_adds / 16, double(packed_bytes()) / 12);
}

void ConvTranspose::run(const View* inputs, const View* outputs, Lease& lease) const { run(inputs, outputs, lease, false, {}); }

void ConvTranspose::run(const View* inputs, const View* outputs, Lease& lease, bool residual, const std::vector<ActivationCall>& calls) const {
  const Map x(inputs[0]), y(outputs[0]), other(inputs[residual ? 1 : 0]);
  if (x.channels != in_channels_ || y.channels != out_channels_ || y.height != x.height * height_ || y.width != x.width * width_)
    throw std::invalid_argument("conv_transpose: needs a result of the sizes that follow from the input's");
  const int64_t panels = taps_[0].panel_count, stride = (panels | 1) * kPanel, taps = int64_t(taps_.size());
  const int64_t blocks = ceil_div(x.pixels(), kBlockPixels);
  if (blocks == 0) return;
  const int64_t groups = std::min(panels, ceil_div(2 * lease.threads(), taps * blocks));  // of panels, where there are few products
  const ActivationList activations(calls);
  const bool fits = packed_bytes() <= kCachedBytes;
  lease.run(taps * blocks * groups, [&](int64_t chunk) {
    const int64_t group = chunk % groups, place = chunk / groups;
    const int64_t tap = fits ? place % taps : place / blocks, block = fits ? place / taps : place % blocks;
    const int64_t first = x.pixels() * block / blocks, last = x.pixels() * (block + 1) / blocks;
    const int64_t panel = panels * group / groups, end = panels * (group + 1) / groups, channel = panel * kPanel;
    float* sums = thread_arena((last - first) * stride);
    gemm_.layer(taps_[size_t(tap)], x.data + first * x.pixel, x.pixel, last - first, sums, stride, nullptr, panel, end);
    for (int64_t p = first; p < last;) {
      const int64_t row = p / x.width, column = p % x.width, count = std::min(last - p, x.width - column);
      const int64_t to = (row * height_ + tap / width_) * y.width + column * width_ + tap % width_;  // pixel; images follow each other
      const float* beside = residual ? other.data + to * other.pixel + channel : nullptr;
      kernels_.finish(activations, {sums + (p - first) * stride + channel, beside, y.data + to * y.pixel + channel, stride, width_ * other.pixel,
                                    width_ * y.pixel, count, std::min(end * kPanel, out_channels_) - channel});
      p += count;
    }
  });
}

ConvTransposeWith::ConvTransposeWith(const ConvTranspose& conv, bool residual, const std::vector<ActivationCall>& activations)
    : conv_(conv), residual_(residual), activations_(activations) {
  check_elementwise(activations, "conv_transpose");
}

}  // namespace fastgraph
