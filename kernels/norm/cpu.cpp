// Norms on the CPU: packing, and the division of a call into chunks.
#include "cpu.h"

#include <math.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/arena.h"

namespace fastgraph {
namespace {

constexpr int64_t kChunkValues = 8192;
constexpr int64_t kChunkChannels = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

NormParameters::NormParameters(int64_t size, const float* weight, const float* bias)
    : padded_(ceil_div(size, 16) * 16), values_(aligned_floats(2 * padded_)) {
  std::fill(values_.get(), values_.get() + padded_, 1.0f);
  std::fill(values_.get() + padded_, values_.get() + 2 * padded_, 0.0f);
  if (weight) std::copy(weight, weight + size, values_.get());
  if (bias) std::copy(bias, bias + size, values_.get() + padded_);
}

double LayerNorm::estimate_ns(const View* inputs) const {
  const double values = double(inputs[0].numel());
  return 30 + 0.12 * values + 30 * values / double(std::max<int64_t>(size_, 1));
}

void LayerNorm::run(const View* inputs, const View* outputs, Lease& lease) const {
  const View& x = inputs[0];
  const int64_t values = x.numel();
  if (values == 0) return;
  const int64_t rows = values / size_, ldx = x.rank == 2 ? x.strides[0] : size_;
  const int64_t each = lease.threads() == 1 ? rows : std::max<int64_t>(1, kChunkValues / size_);
  const RowNorm norm{size_, parameters_.weight(), parameters_.bias(), eps_};
  lease.run(ceil_div(rows, each), [&](int64_t c) {
    const int64_t first = c * each, count = std::min(each, rows - first);
    rows_(norm, static_cast<const float*>(x.data) + first * ldx, ldx, count, static_cast<float*>(outputs[0].data) + first * size_);
  });
}

GroupNorm::GroupNorm(int64_t groups, int64_t channels, const float* weight, const float* bias, double eps, const NormKernels& kernels)
    : groups_(groups), channels_(channels), eps_(eps), parameters_(channels, weight, bias), kernels_(kernels) {
  if (groups < 1 || channels % groups != 0)
    throw std::invalid_argument("GroupNorm: groups: needs a divisor of " + std::to_string(channels) + " channels, got " + std::to_string(groups));
}

// Of every image and channel.
struct GroupNorm::Scratch {
  double *sum, *squares;
  float *center, *delta, *scale;

  static int64_t floats(int64_t count) { return 7 * count; }
  Scratch(float* memory, int64_t count) : sum(reinterpret_cast<double*>(memory)), squares(sum + count), center(memory + 4 * count), delta(center + count), scale(delta + count) {}
};

double GroupNorm::estimate_ns(const View* inputs) const { return 200 + 0.25 * double(inputs[0].numel()); }

// A group's mean, to all of its channels.
void GroupNorm::find_centers(int64_t images, int64_t pixels, const Scratch& scratch) const {
  const int64_t size = channels_ / groups_;
  for (int64_t first = 0; first < images * channels_; first += size) {
    double sum = 0;
    for (int64_t c = first; c < first + size; c++) sum += scratch.sum[c];
    std::fill(scratch.center + first, scratch.center + first + size, float(sum / double(size * pixels)));
  }
}

// Moments are now those of the differences from the rounded mean: what is left of it, and the variance.
void GroupNorm::find_scales(int64_t images, int64_t pixels, const Scratch& scratch) const {
  const int64_t size = channels_ / groups_;
  const double count = double(size * pixels);
  for (int64_t first = 0; first < images * channels_; first += size) {
    double sum = 0, squares = 0;
    for (int64_t c = first; c < first + size; c++) {
      sum += scratch.sum[c];
      squares += scratch.squares[c];
    }
    const double rest = sum / count, variance = squares / count - rest * rest, scale = 1 / sqrt(std::max(variance, 0.0) + eps_);
    for (int64_t c = first; c < first + size; c++) {
      scratch.delta[c] = float(rest);
      scratch.scale[c] = float(scale * double(parameters_.weight()[c % channels_]));
    }
  }
}

void GroupNorm::run(const View* inputs, const View* outputs, Lease& lease) const {
  const View &x = inputs[0], &y = outputs[0];
  const int64_t images = x.sizes[0], values = x.numel(), pixels = values / std::max<int64_t>(1, images * channels_);
  if (values == 0) return;
  const int64_t x_stride = x.rank > 2 ? x.strides[x.rank - 1] : channels_, y_stride = y.rank > 2 ? y.strides[y.rank - 1] : channels_;
  const Scratch scratch(thread_arena(Scratch::floats(images * channels_)), images * channels_);
  std::fill(scratch.center, scratch.center + images * channels_, 0.0f);
  const int64_t blocks = ceil_div(channels_, kChunkChannels);
  const auto part = [&](int64_t image, int64_t channel) { return static_cast<const float*>(x.data) + image * x.strides[0] + channel; };
  const auto find_moments = [&] {
    lease.run(images * blocks, [&](int64_t c) {
      const int64_t image = c / blocks, channel = c % blocks * kChunkChannels, at = image * channels_ + channel;
      const Pixels block{part(image, channel), pixels, x_stride, std::min(kChunkChannels, channels_ - channel)};
      kernels_.channel_moments(block, scratch.center + at, {scratch.sum + at, scratch.squares + at});
    });
  };
  find_moments();
  find_centers(images, pixels, scratch);
  find_moments();
  find_scales(images, pixels, scratch);
  const int64_t each = std::max<int64_t>(1, kChunkValues / channels_), strips = ceil_div(pixels, each);
  lease.run(images * strips, [&](int64_t c) {
    const int64_t image = c / strips, first = c % strips * each, at = image * channels_;
    const Pixels strip{part(image, 0) + first * x_stride, std::min(each, pixels - first), x_stride, channels_};
    const ChannelScale scale{scratch.center + at, scratch.delta + at, scratch.scale + at, parameters_.bias()};
    kernels_.scale_channels(strip, scale, static_cast<float*>(y.data) + image * y.strides[0] + first * y_stride, y_stride);
  });
}

}  // namespace fastgraph
