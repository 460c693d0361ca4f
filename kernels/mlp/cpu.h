// mlp on the CPU: a chain of Linear layers with activations, fp32.
//
// Weights are packed once: panels of 16 outputs, [out / 16][in][16], the last panel padded
// with zeros, so that the inner loop reads one 64-byte line per input feature. The layout is
// the same for every ISA.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

namespace fastgraph {

enum class Activation : int;

constexpr int kMaxActivations = 4;

struct MlpLayer {
  int64_t in_features, out_features, panel_count;
  const float* panels;                      // [panel_count][in_features][16], 64-byte aligned
  const float* bias;                        // [panel_count * 16], zeros where there is none
  Activation activations[kMaxActivations];  // applied in this order; softmax only as the last layer's last
  int activation_count;
};

struct MlpKernels {
  // out[r, 16 p .. 16 p + 15] = activations(bias + a[r, :] . weight) for panels p in [first, last); out has stride ldo.
  void (*layer)(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last);
  // Applies the last layer's softmax, if it has one, and copies rows of `out` (stride ldo) to y (stride out_features).
  void (*finish)(const MlpLayer& last, float* out, int64_t ldo, int64_t rows, float* y);
};

class Lease;

class Mlp {
 public:
  struct Source {
    const float* weight;  // [out_features, in_features], contiguous
    const float* bias;    // [out_features] or null
    int64_t out_features, in_features;
    std::vector<Activation> activations;
  };

  explicit Mlp(const std::vector<Source>& sources);

  // y[M, out_features] = mlp(x[M, in_features]); x has row stride ldx, y is contiguous. They may not overlap.
  void run(const float* x, int64_t ldx, int64_t rows, float* y, int threads) const;

  // The same for one block of rows on this thread; scratch holds scratch_floats(rows) floats.
  void run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const;
  int64_t scratch_floats(int64_t rows) const { return 2 * rows * width_; }

  int64_t in_features() const { return layers_.front().in_features; }
  int64_t out_features() const { return layers_.back().out_features; }
  int64_t multiply_adds() const { return multiply_adds_; }  // per row
  int64_t packed_bytes() const { return packed_floats_ * int64_t(sizeof(float)); }

 private:
  void run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;

  std::vector<MlpLayer> layers_;
  std::unique_ptr<float, void (*)(void*)> storage_;
  int64_t width_ = 0;  // widest layer, padded
  int64_t multiply_adds_ = 0;
  int64_t packed_floats_ = 0;
};

}  // namespace fastgraph
