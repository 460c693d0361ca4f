// Norms on the CPU: packing, and the division of a call into chunks.
#include "cpu.h"

#include <math.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../cpu/arena.h"

namespace fastgraph {
namespace {

constexpr int64_t kChunkValues = 8192;
constexpr int64_t kChunkChannels = 64;
constexpr int64_t kSamples = 16;  // pixels
constexpr double kFar = 16;       // (mean - center)^2 over the variance, from which on differences from the center lose two bits

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
  return 30 + 0.15 * values + 30 * values / double(std::max<int64_t>(size_, 1));
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
  Scratch(float* memory, int64_t count)
      : sum(reinterpret_cast<double*>(memory)), squares(sum + count), center(memory + 4 * count), delta(center + count), scale(delta + count) {}

  Scratch from(int64_t channel) const {
    Scratch part = *this;
    part.sum += channel;
    part.squares += channel;
    part.center += channel;
    part.delta += channel;
    part.scale += channel;
    return part;
  }
};

double GroupNorm::estimate_ns(const View* inputs) const { return 300 + 0.2 * double(inputs[0].numel()); }

// Of the values' differences from the centers. Channels are independent of each other.
void GroupNorm::find_moments(const Pixels& image, const Scratch& of, int64_t block) const {
  const int64_t first = block * kChunkChannels, channels = std::min(kChunkChannels, channels_ - first);
  kernels_.channel_moments({image.data + first, image.count, image.stride, channels}, of.center + first, {of.sum + first, of.squares + first});
}

// Adds to the centers of an image what is left of each group's mean.
void GroupNorm::move_centers(int64_t pixels, const Scratch& of) const {
  const int64_t size = channels_ / groups_;
  for (int64_t first = 0; first < channels_; first += size) {
    const double sum = std::accumulate(of.sum + first, of.sum + first + size, 0.0);
    std::fill(of.center + first, of.center + first + size, float(double(of.center[first]) + sum / double(size * pixels)));
  }
}

// What is left of each group's mean, and the scale of its variance. False where the centers are so far from the means that the variances
// are not exact.
bool GroupNorm::find_scales(int64_t pixels, const Scratch& of) const {
  const int64_t size = channels_ / groups_;
  const double count = double(size * pixels);
  bool is_exact = true;
  for (int64_t first = 0; first < channels_; first += size) {
    const double rest = std::accumulate(of.sum + first, of.sum + first + size, 0.0) / count;
    const double variance = std::max(0.0, std::accumulate(of.squares + first, of.squares + first + size, 0.0) / count - rest * rest);
    is_exact = is_exact && !(rest * rest > kFar * variance);
    for (int64_t c = first; c < first + size; c++) {
      of.delta[c] = float(rest);
      of.scale[c] = float(1 / sqrt(variance + eps_) * double(parameters_.weight()[c]));
    }
  }
  return is_exact;
}

// Centers are the means of a few pixels at first: then one pass over the map gives exact variances, unless these pixels are like no others.
void GroupNorm::run(const View* inputs, const View* outputs, Lease& lease) const {
  const View &x = inputs[0], &y = outputs[0];
  const int64_t images = x.sizes[0], values = x.numel(), pixels = values / std::max<int64_t>(1, images * channels_);
  if (values == 0) return;
  const int64_t x_stride = x.rank > 2 ? x.strides[x.rank - 1] : channels_, y_stride = y.rank > 2 ? y.strides[y.rank - 1] : channels_;
  const Scratch scratch(thread_arena(Scratch::floats(images * channels_)), images * channels_);
  std::fill(scratch.center, scratch.center + images * channels_, 0.0f);
  const auto image = [&](int64_t i) { return Pixels{static_cast<const float*>(x.data) + i * x.strides[0], pixels, x_stride, channels_}; };
  const int64_t blocks = ceil_div(channels_, kChunkChannels), step = ceil_div(pixels, kSamples);
  for (int64_t i = 0; i < images; i++) {
    const Pixels samples{image(i).data, ceil_div(pixels, step), step * x_stride, channels_};
    for (int64_t block = 0; block < blocks; block++) find_moments(samples, scratch.from(i * channels_), block);
    move_centers(samples.count, scratch.from(i * channels_));
  }
  lease.run(images * blocks, [&](int64_t c) { find_moments(image(c / blocks), scratch.from(c / blocks * channels_), c % blocks); });
  for (int64_t i = 0; i < images; i++) {
    const Scratch of = scratch.from(i * channels_);
    if (find_scales(pixels, of)) continue;
    move_centers(pixels, of);
    lease.run(blocks, [&](int64_t block) { find_moments(image(i), of, block); });
    find_scales(pixels, of);
  }
  const int64_t each = std::max<int64_t>(1, kChunkValues / channels_), strips = ceil_div(pixels, each);
  lease.run(images * strips, [&](int64_t c) {
    const int64_t i = c / strips, first = c % strips * each;
    const Pixels strip{image(i).data + first * x_stride, std::min(each, pixels - first), x_stride, channels_};
    const Scratch of = scratch.from(i * channels_);
    kernels_.scale_channels(strip, {of.center, of.delta, of.scale, parameters_.bias()}, static_cast<float*>(y.data) + i * y.strides[0] + first * y_stride, y_stride);
  });
}

}  // namespace fastgraph
