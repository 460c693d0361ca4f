// mlp on the CPU: packing, and the division of a call into chunks.
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <stdexcept>

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

// Panels in a chunk of columns: a multiple of every tile's width on AVX2 and the batch-1 tile on AVX-512.
constexpr int64_t kColumnPanels = 4;

// One thread's time, roughly: 16 multiply-adds a nanosecond, or the weights at 12 bytes a nanosecond.
double work_ns(double multiply_adds, double weight_bytes) { return std::max(multiply_adds / 16, weight_bytes / 12); }

// [out, in] to panels of 16 outputs: panels[p][k][j] = weight[16 p + j][k].
void pack_weight(const float* weight, int64_t out_features, int64_t in_features, float* panels) {
  for (int64_t first = 0; first < out_features; first += kLanes) {
    const int64_t count = std::min(kLanes, out_features - first);
    float* panel = panels + first * in_features;
    for (int64_t k = 0; k < in_features; k++)
      for (int64_t j = 0; j < kLanes; j++) panel[k * kLanes + j] = j < count ? weight[(first + j) * in_features + k] : 0.0f;
  }
}

}  // namespace

Mlp::Mlp(const std::vector<Source>& sources) : storage_(nullptr, free) {
  for (const Source& s : sources) {
    MlpLayer layer{};
    layer.in_features = s.in_features;
    layer.out_features = s.out_features;
    layer.panel_count = (s.out_features + kLanes - 1) / kLanes;
    if (s.activations.size() > size_t(kMaxActivations)) throw std::invalid_argument("mlp: too many activations in one layer");
    for (Activation a : s.activations) layer.activations[layer.activation_count++] = a;
    packed_floats_ += layer.panel_count * kLanes * (s.in_features + 1);
    width_ = std::max(width_, layer.panel_count * kLanes);
    multiply_adds_ += s.in_features * s.out_features;
    layers_.push_back(layer);
  }
  void* data = nullptr;
  if (posix_memalign(&data, 64, size_t(std::max<int64_t>(packed_floats_, 1)) * sizeof(float)) != 0) throw std::bad_alloc();
  storage_.reset(static_cast<float*>(data));
  float* next = storage_.get();
  for (size_t i = 0; i < layers_.size(); i++) {
    MlpLayer& layer = layers_[i];
    const int64_t padded = layer.panel_count * kLanes;
    pack_weight(sources[i].weight, layer.out_features, layer.in_features, next);
    layer.panels = next;
    next += padded * layer.in_features;
    std::fill(next, next + padded, 0.0f);
    if (sources[i].bias) std::copy(sources[i].bias, sources[i].bias + layer.out_features, next);
    layer.bias = next;
    next += padded;
  }
}

void Mlp::run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const {
  const MlpKernels& kernels = isa().mlp;
  for (size_t i = 0; i < layers_.size(); i++) {
    const MlpLayer& layer = layers_[i];
    float* out = scratch + (i % 2) * rows * width_;
    const int64_t ldo = layer.panel_count * kLanes;
    kernels.layer(layer, x, ldx, rows, out, ldo, 0, layer.panel_count);
    x = out;
    ldx = ldo;
  }
  kernels.finish(layers_.back(), const_cast<float*>(x), ldx, rows, y);
}

// Few rows: each layer's columns are divided, so that every weight is read by one thread only.
void Mlp::run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const {
  const MlpKernels& kernels = isa().mlp;
  float* scratch = thread_arena(scratch_floats(rows));
  for (size_t i = 0; i < layers_.size(); i++) {
    const MlpLayer& layer = layers_[i];
    float* out = scratch + (i % 2) * rows * width_;
    const int64_t ldo = layer.panel_count * kLanes;
    const int64_t chunks = (layer.panel_count + kColumnPanels - 1) / kColumnPanels;
    lease.run(chunks, [&](int64_t c) {
      const int64_t first = c * kColumnPanels;
      kernels.layer(layer, x, ldx, rows, out, ldo, first, std::min(first + kColumnPanels, layer.panel_count));
    });
    x = out;
    ldx = ldo;
  }
  kernels.finish(layers_.back(), const_cast<float*>(x), ldx, rows, y);
}

void Mlp::run(const float* x, int64_t ldx, int64_t rows, float* y, int threads) const {
  if (rows == 0) return;
  Lease lease(threads, work_ns(double(multiply_adds_) * double(rows), double(packed_bytes())));
  if (lease.threads() > 1 && rows < kMinRowsPerThread * lease.threads()) return run_columns(x, ldx, rows, y, lease);
  // As many equal blocks as keep every thread busy to the end.
  const int64_t per_thread = (rows + lease.threads() - 1) / lease.threads();
  const int64_t rounds = (per_thread + kBlockRows - 1) / kBlockRows;
  const int64_t chunks = rounds * lease.threads(), block = (rows + chunks - 1) / chunks;
  lease.run((rows + block - 1) / block, [&](int64_t c) {
    const int64_t first = c * block, count = std::min(block, rows - first);
    run_block(x + first * ldx, ldx, count, y + first * out_features(), thread_arena(scratch_floats(block)));
  });
}

}  // namespace fastgraph
