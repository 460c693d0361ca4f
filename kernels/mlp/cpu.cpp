// mlp on the CPU: packing, and the division of a call into chunks.
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <stdexcept>

#include "../cpu/activation.h"
#include "../cpu/arena.h"
#include "../cpu/bf16.h"
#include "../cpu/isa.h"
#include "../cpu/pool.h"

namespace fastgraph {
namespace {

constexpr int64_t kLanes = 16;

// Rows that one chunk takes through all layers: enough to pay for reading the weights once more,
// few enough that the activations stay in L2 (96 rows x 1024 floats x 4 B = 384 KB).
constexpr int64_t kBlockRows = 96;

// Below so many rows a thread, threads divide the columns of each layer instead of the rows.
constexpr int64_t kMinRowsPerThread = 12;

// One thread's time, roughly: 16 multiply-adds a nanosecond, or the weights at 12 bytes a nanosecond.
double work_ns(double multiply_adds, double weight_bytes) { return std::max(multiply_adds / 16, weight_bytes / 12); }

// Outputs of the panel that begins with output `first`.
int64_t panel_lanes(int64_t first, int64_t out_features) { return out_features - first > kLanes / 2 ? kLanes : kLanes / 2; }

// [out, in] to panels of 16 outputs, the last of 8 where they suffice: panels[p][k][j] = weight[16 p + j][k].
void pack_weight(const float* weight, int64_t out_features, int64_t in_features, float* panels) {
  for (int64_t first = 0; first < out_features; first += kLanes) {
    const int64_t lanes = panel_lanes(first, out_features), count = std::min(lanes, out_features - first);
    float* panel = panels + first * in_features;
    for (int64_t k = 0; k < in_features; k++)
      for (int64_t j = 0; j < lanes; j++) panel[k * lanes + j] = j < count ? weight[(first + j) * in_features + k] : 0.0f;
  }
}

// The same for bf16: panels[p][k / 2][j] holds weight[16 p + j][k] and [k + 1].
void pack_weight(const uint16_t* weight, int64_t out_features, int64_t in_features, uint32_t* panels) {
  const auto at = [&](int64_t row, int64_t k) {
    return row < out_features && k < in_features ? uint32_t(weight[row * in_features + k]) : uint32_t(0);
  };
  for (int64_t first = 0; first < out_features; first += kLanes)
    for (int64_t k = 0; k < in_features; k += 2)
      for (int64_t j = 0; j < panel_lanes(first, out_features); j++) *panels++ = at(first + j, k) | at(first + j, k + 1) << 16;
}

bool ends_in_softmax(const MlpLayer& layer) {
  const Activation tail = layer.activation_count > 0 ? layer.activations[layer.activation_count - 1] : Activation::none;
  return tail == Activation::softmax || tail == Activation::log_softmax;
}

// Whether its results can be narrowed as they come: whole pairs, since what stands beyond the last output may be NaN.
bool can_narrow(const MlpLayer& layer) {
  if (layer.out_features % 2 != 0) return false;
  return layer.activation_count == 0 || (layer.activation_count == 1 && layer.activations[0] == Activation::relu);
}

}  // namespace

Mlp::Mlp(const std::vector<Source>& sources, bool bf16) : storage_(nullptr, free), bf16_(bf16) {
  const auto weight_rows = [&](int64_t in_features) { return bf16 ? (in_features + 1) / 2 : in_features; };
  const auto panel_words = [&](const MlpLayer& layer) {  // whole cache lines
    const int64_t lanes = layer.panel_count * kLanes - (layer.ends_in_half() ? kLanes / 2 : 0);
    return (lanes * weight_rows(layer.in_features) + kLanes - 1) / kLanes * kLanes;
  };
  for (const Source& s : sources) {
    MlpLayer layer{};
    layer.in_features = s.in_features;
    layer.out_features = s.out_features;
    layer.panel_count = (s.out_features + kLanes - 1) / kLanes;
    if (s.activations.size() > size_t(kMaxActivations)) throw std::invalid_argument("mlp: too many activations in one layer");
    for (Activation a : s.activations) layer.activations[layer.activation_count++] = a;
    packed_words_ += panel_words(layer) + layer.panel_count * kLanes;
    width_ = std::max({width_, layer.panel_count * kLanes, bf16 ? weight_rows(s.in_features) : 0});
    multiply_adds_ += s.in_features * s.out_features;
    layers_.push_back(layer);
  }
  MlpLayer& last = layers_.back();
  last.activates_late = last.out_features <= kLanes / 2 && !ends_in_softmax(last);
  void* data = nullptr;
  if (posix_memalign(&data, 64, size_t(std::max<int64_t>(packed_words_, 1)) * sizeof(float)) != 0) throw std::bad_alloc();
  storage_.reset(static_cast<float*>(data));
  float* next = storage_.get();
  for (size_t i = 0; i < layers_.size(); i++) {
    MlpLayer& layer = layers_[i];
    const int64_t padded = layer.panel_count * kLanes;
    if (bf16) {
      layer.pairs = reinterpret_cast<uint32_t*>(next);
      pack_weight(static_cast<const uint16_t*>(sources[i].weight), layer.out_features, layer.in_features, reinterpret_cast<uint32_t*>(next));
    } else {
      layer.panels = next;
      pack_weight(static_cast<const float*>(sources[i].weight), layer.out_features, layer.in_features, next);
    }
    next += panel_words(layer);
    std::fill(next, next + padded, 0.0f);
    if (sources[i].bias) std::copy(sources[i].bias, sources[i].bias + layer.out_features, next);
    layer.bias = next;
    next += padded;
  }
}

template <class Step>
void Mlp::for_layers(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch, const Step& step) const {
  const MlpKernels& kernels = isa().mlp;
  const bool narrows = bf16_ && kernels.narrow;
  bool is_narrow = false;
  for (size_t i = 0; i < layers_.size(); i++) {
    const MlpLayer& layer = layers_[i];
    float* out = scratch + (i % 2) * rows * width_;
    float* narrowed = scratch + (2 + i % 2) * rows * width_;
    const int64_t ldo = layer.panel_count * kLanes;
    if (narrows && !is_narrow) {
      kernels.narrow(x, ldx, rows, layer.in_features, narrowed);
      x = narrowed;
      ldx = (layer.in_features + 1) / 2;
    }
    is_narrow = narrows && i + 1 < layers_.size() && can_narrow(layer);
    float* next = is_narrow ? scratch + (2 + (i + 1) % 2) * rows * width_ : nullptr;
    step(layer, x, ldx, out, ldo, next);
    x = is_narrow ? next : out;
    ldx = is_narrow ? ldo / 2 : ldo;
  }
  kernels.finish(layers_.back(), const_cast<float*>(x), ldx, rows, y);
}

// Panels [first, last) of one layer.
void Mlp::run_panels(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first,
                     int64_t last) const {
  if (bf16_) isa().mlp.layer_bf16(layer, a, lda, rows, out, ldo, narrowed, first, last);
  else isa().mlp.layer(layer, a, lda, rows, out, ldo, first, last);
}

void Mlp::run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const {
  for_layers(x, ldx, rows, y, scratch, [&](const MlpLayer& layer, const float* a, int64_t lda, float* out, int64_t ldo, float* narrowed) {
    run_panels(layer, a, lda, rows, out, ldo, narrowed, 0, layer.panel_count);
  });
}

// Few rows: each layer's columns are divided, so that every weight is read by one thread only.
void Mlp::run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const {
  float* scratch = thread_arena(scratch_floats(rows));
  for_layers(x, ldx, rows, y, scratch, [&](const MlpLayer& layer, const float* a, int64_t lda, float* out, int64_t ldo, float* narrowed) {
    // A chunk a thread: the caller draws the first one, so that call after call each finds its weights in its own L2.
    const int64_t panels = std::max<int64_t>(1, (layer.panel_count + lease.threads() - 1) / lease.threads());
    lease.run((layer.panel_count + panels - 1) / panels, [&](int64_t c) {
      run_panels(layer, a, lda, rows, out, ldo, narrowed, c * panels, std::min((c + 1) * panels, layer.panel_count));
    });
  });
}

// In blocks of rows, since what is widened should not go through memory.
void Mlp::run_bf16(const uint16_t* x, int64_t ldx, int64_t rows, uint16_t* y, int threads) const {
  const int64_t in = in_features(), out = out_features(), block = std::max<int64_t>(1, std::min(rows, kBlockRows * threads));
  std::vector<float> wide(size_t(block * (in + out)));
  float* result = wide.data() + block * in;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    for (int64_t r = 0; r < count; r++) std::transform(x + (first + r) * ldx, x + (first + r) * ldx + in, wide.data() + r * in, widen);
    run(wide.data(), in, count, result, threads);
    std::transform(result, result + count * out, y + first * out, narrow);
  }
}

void Mlp::run(const float* x, int64_t ldx, int64_t rows, float* y, int threads) const {
  if (rows == 0 || out_features() == 0) return;
  if (in_features() == 0) ldx = 0;  // x may be null
  Lease::hold(threads, time_, work_ns(double(multiply_adds_) * double(rows), double(packed_bytes())), [&](Lease& lease) {
    if (lease.threads() > 1 && rows < kMinRowsPerThread * lease.threads()) run_columns(x, ldx, rows, y, lease);
    else run_rows(x, ldx, rows, y, lease);
  });
}

// As many equal blocks as keep every thread busy to the end.
void Mlp::run_rows(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const {
  const int64_t per_thread = (rows + lease.threads() - 1) / lease.threads();
  const int64_t rounds = (per_thread + kBlockRows - 1) / kBlockRows;
  const int64_t chunks = rounds * lease.threads(), block = (rows + chunks - 1) / chunks;
  lease.run((rows + block - 1) / block, [&](int64_t c) {
    const int64_t first = c * block, count = std::min(block, rows - first);
    run_block(x + first * ldx, ldx, count, y + first * out_features(), thread_arena(scratch_floats(block)));
  });
}

}  // namespace fastgraph
