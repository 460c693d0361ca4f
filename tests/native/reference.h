// The ops as plain loops in double precision. Beside each value stands the largest error that single precision may have
// there: n rounded operations on terms t lose at most n u sum |t|, u = 2^-24 (Higham, "Accuracy and Stability of Numerical
// Algorithms", 2002, section 3.1), and errors that came in grow with the weights.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../kernels/conv/cpu.h"
#include "../../kernels/conv_pool/cpu.h"
#include "../../kernels/cpu/activation.h"
#include "../../kernels/mlp/cpu.h"

namespace fastgraph::tests {

constexpr double kUnit = 0x1p-24;
constexpr double kSmallest = 0x1p-149;  // denormals: the error is absolute

struct Bounded {
  double value = 0, error = 0;
};

// NaN and infinities have no error: they have to be there.
inline Bounded bounded(double value, double error) { return {value, std::isfinite(value) ? error : 0}; }

// Sum of products and a bias, by any order of `operations` roundings.
class Sum {
 public:
  explicit Sum(double bias) : value_(bias), terms_(std::abs(bias)) {}
  void add(double weight, Bounded x) {
    value_ += weight * x.value;
    terms_ += std::abs(weight) * (std::abs(x.value) + x.error);
    passed_on_ += std::abs(weight) * x.error;
  }
  // As if the terms were that large in sum.
  void widen(double terms) { terms_ = std::max(terms_, terms); }
  Bounded result(int64_t operations) const {
    return bounded(value_, passed_on_ + double(operations) * (kUnit * terms_ + kSmallest));
  }

 private:
  double value_, terms_, passed_on_ = 0;
};

inline double function(Activation activation, double x) {
  switch (activation) {
    case Activation::relu: return x > 0 || std::isnan(x) ? x : 0;
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    default: return x;
  }
}

// Slopes are below 1.2, and each function is a dozen operations on values of about 1 and |x|.
inline Bounded activate(Activation activation, Bounded x) {
  const double own = activation == Activation::none || activation == Activation::relu ? 0 : 12 * kUnit;
  const double size = std::isfinite(x.value) ? std::abs(x.value) + 1 : 1;
  return bounded(function(activation, x.value), 1.2 * x.error + own * size);
}

inline void softmax(std::vector<Bounded>& row, bool logarithm) {
  double largest = -HUGE_VAL, total = 0, error = 0, span = 1;
  for (const Bounded& x : row) largest = std::fmax(largest, x.value);
  for (const Bounded& x : row) {
    total += std::exp(x.value - largest);
    error = std::max(error, x.error);
    if (std::isfinite(x.value - largest)) span = std::max(span, largest - x.value);
  }
  const double operations = 16 + double(row.size());
  for (Bounded& x : row) {
    const double shifted = x.value - largest;
    // The slopes of softmax add up to at most 1/2, those of log_softmax to 2; x - largest is rounded in units of itself.
    x = logarithm ? bounded(shifted - std::log(total), 2 * error + kUnit * (2 * span + operations))
                  : bounded(std::exp(shifted) / total, error + kUnit * (2 + operations));
  }
}

// mlp of one row.
inline std::vector<Bounded> mlp(const std::vector<Mlp::Source>& layers, std::vector<Bounded> x) {
  for (const Mlp::Source& layer : layers) {
    const float* weight = static_cast<const float*>(layer.weight);
    std::vector<Bounded> y;
    for (int64_t o = 0; o < layer.out_features; o++) {
      Sum sum(layer.bias ? layer.bias[o] : 0);
      for (int64_t k = 0; k < layer.in_features; k++) sum.add(weight[o * layer.in_features + k], x[size_t(k)]);
      y.push_back(sum.result(layer.in_features + 4));
    }
    for (Activation a : layer.activations) {
      if (a == Activation::softmax || a == Activation::log_softmax) softmax(y, a == Activation::log_softmax);
      else for (Bounded& v : y) v = activate(a, v);
    }
    x = std::move(y);
  }
  return x;
}

// One output of the convolution. Pixels at (row, column) of channel c are `pixel(c, row, column)`, zero outside.
template <class Pixel>
Bounded convolution(const ConvPoolGeometry& g, const float* weight, double bias, int64_t row, int64_t column, const Pixel& pixel) {
  Sum sum(bias);
  double neighbours = std::abs(bias);
  for (int64_t c = 0; c < g.in_channels; c++)
    for (int64_t i = 0; i < g.kernel_h; i++) {
      const int64_t y = row * g.stride_h - g.padding_h + i * g.dilation_h, left = column * g.stride_w - g.padding_w;
      double weights = 0, largest = 0;
      for (int64_t j = 0; j < g.kernel_w; j++, weight++) {
        sum.add(*weight, {pixel(c, y, left + j * g.dilation_w), 0});
        weights += std::abs(double(*weight));
      }
      for (int64_t j = 0; j < g.kernel_w; j++)
        if (const double p = std::abs(pixel(c, y, left + j)); std::isfinite(p)) largest = std::max(largest, p);
      neighbours += 4 * weights * largest;
    }
  // Winograd's sums (kernels/conv_pool/winograd.h) multiply each of the three pixels by sums of all three weights.
  if (g.kernel_w == 3 && g.stride_w == 1 && g.dilation_w == 1) sum.widen(neighbours);
  return sum.result(2 * g.in_channels * g.kernel_h * g.kernel_w + 6);
}

// One output of channel `o` of a convolution.
template <class Pixel>
Bounded convolution(const ConvGeometry& g, const float* weight, const float* bias, int64_t o, int64_t row, int64_t column, const Pixel& pixel) {
  Sum sum(bias ? bias[o] : 0);
  const int64_t inputs = g.group_inputs(), first = o / g.group_outputs() * inputs;
  const int64_t top = row * g.stride_h - g.padding_top, left = column * g.stride_w - g.padding_left;
  double neighbours = bias ? std::abs(bias[o]) : 0;
  weight += o * inputs * g.kernel_h * g.kernel_w;
  for (int64_t c = first; c < first + inputs; c++) {
    double weights = 0, largest = 0;
    for (int64_t i = 0; i < g.kernel_h; i++)
      for (int64_t j = 0; j < g.kernel_w; j++, weight++) {
        const double p = pixel(c, top + i * g.dilation_h, left + j * g.dilation_w);
        sum.add(*weight, {p, 0});
        weights += std::abs(double(*weight));
        if (std::isfinite(p)) largest = std::max(largest, std::abs(p));
      }
    neighbours += 36 * weights * largest;
  }
  // Winograd's sums (kernels/conv/winograd.h): nine of sums of up to four pixels by sums of up to nine weights.
  if (g.kernel_h == 3 && g.kernel_w == 3 && g.stride_h * g.stride_w * g.dilation_h * g.dilation_w * g.groups == 1) sum.widen(neighbours);
  return sum.result(2 * inputs * g.kernel_h * g.kernel_w + 12);
}

// conv_pool of one image, [out_channels][out_height][out_width].
inline std::vector<Bounded> conv_pool(const ConvPoolShape& s, const float* weight, const float* bias, const float* image) {
  const ConvPoolGeometry& g = s.g;
  const auto pixel = [&](int64_t c, int64_t y, int64_t x) -> double {
    return y < 0 || y >= s.height || x < 0 || x >= s.width ? 0 : image[(c * s.height + y) * s.width + x];
  };
  std::vector<Bounded> out;
  for (int64_t o = 0; o < g.out_channels; o++) {
    std::vector<Bounded> map;
    for (int64_t y = 0; y < s.conv_height; y++)
      for (int64_t x = 0; x < s.conv_width; x++) map.push_back(convolution(g, weight + o * s.taps, bias ? bias[o] : 0, y, x, pixel));
    for (int64_t p = 0; p < s.out_height * s.out_width; p++) {
      const int64_t top = p / s.out_width * g.pool_stride_h - g.pool_padding_h, left = p % s.out_width * g.pool_stride_w - g.pool_padding_w;
      Bounded best;  // zero, the least that ReLU leaves
      for (int64_t y = std::max<int64_t>(top, 0); y < std::min(top + g.pool_kernel_h, s.conv_height); y++)
        for (int64_t x = std::max<int64_t>(left, 0); x < std::min(left + g.pool_kernel_w, s.conv_width); x++) {
          const Bounded& v = map[size_t(y * s.conv_width + x)];
          best.error = std::max(best.error, v.error);
          if (!std::isnan(best.value) && !(v.value <= best.value)) best.value = v.value;
        }
      out.push_back(bounded(best.value, best.error));
    }
  }
  return out;
}

}  // namespace fastgraph::tests
