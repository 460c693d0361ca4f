// mlp on the CPU: a chain of Linear layers with activations. Weights are fp32 or bf16, sums fp32.
//
// Weights are packed once: panels of 16 outputs, [out / 16][in][16], the last panel padded with zeros, so that the
// inner loop reads one 64-byte line per input feature; bf16 ones in pairs of input features, [out / 16][in / 2][16][2],
// one line per pair. Where at most eight outputs are left for it, the last panel has 8 instead of 16. The layout is the same
// for every ISA.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "../cpu/work.h"

namespace fastgraph {

enum class Activation : int;

constexpr int kMaxActivations = 4;

struct MlpLayer {
  int64_t in_features, out_features, panel_count;
  const float* panels;                      // [panel_count][in_features][16 or 8], 64-byte aligned; null where weights are bf16
  const uint32_t* pairs;                    // bf16: [panel_count][(in_features + 1) / 2][16 or 8], the even feature in the low half
  const float* bias;                        // [panel_count * 16], zeros where there is none
  Activation activations[kMaxActivations];  // applied in this order; softmax only as the last layer's last
  int activation_count;
  bool activates_late;  // in `finish`: the chain's last layer, of so few outputs that most of its vectors' lanes are empty

  // Whether the last panel has eight outputs.
  bool ends_in_half() const { return (out_features + 15) % 16 < 8; }

};

struct MlpKernels {
  // out[r, 16 p .. 16 p + 15] = activations(bias + a[r, :] . weight) for panels p in [first, last); out has stride ldo.
  void (*layer)(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, int64_t first, int64_t last);
  // The same with bf16 weights. Where `narrow` exists, `a` is what it made, and results go to `narrowed`, unless that is
  // null, rounded in the same way with stride ldo / 2; a layer may then have no activation but ReLU and must have an even
  // number of outputs, and `out` is scratch.
  void (*layer_bf16)(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last);
  // Null where activations stay fp32. Rounds rows of `in_features` floats to pairs of bf16, (in_features + 1) / 2 words each.
  void (*narrow)(const float* a, int64_t lda, int64_t rows, int64_t in_features, float* to);
  // Copies rows of `out` (stride ldo) to y (stride out_features), with the last layer's softmax, if it has one, and what it
  // activates late.
  void (*finish)(const MlpLayer& last, float* out, int64_t ldo, int64_t rows, float* y);
};

class Lease;

class Mlp {
 public:
  struct Source {
    const void* weight;  // [out_features, in_features], contiguous, fp32 or bf16
    const float* bias;    // [out_features] or null
    int64_t out_features, in_features;
    std::vector<Activation> activations;
  };

  explicit Mlp(const std::vector<Source>& sources, bool bf16 = false);

  // y[M, out_features] = mlp(x[M, in_features]); x has row stride ldx, y is contiguous. They may not overlap.
  void run(const float* x, int64_t ldx, int64_t rows, float* y, int threads) const;

  // The same on bf16 rows, to bf16 rows (round to nearest even).
  void run_bf16(const uint16_t* x, int64_t ldx, int64_t rows, uint16_t* y, int threads) const;

  // The same for one block of rows on this thread; scratch holds scratch_floats(rows) floats.
  void run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const;
  int64_t scratch_floats(int64_t rows) const { return (bf16_ ? 4 : 2) * rows * width_; }

  int64_t in_features() const { return layers_.front().in_features; }
  int64_t out_features() const { return layers_.back().out_features; }
  int64_t multiply_adds() const { return multiply_adds_; }  // per row
  int64_t packed_bytes() const { return packed_words_ * int64_t(sizeof(float)); }

 private:
  void run_panels(const MlpLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first,
                  int64_t last) const;
  void run_rows(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;
  void run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const;
  // Calls step(layer, a, lda, out, ldo, narrowed) for every layer, with what it reads and where it writes in `scratch`; then
  // finishes.
  template <class Step>
  void for_layers(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch, const Step& step) const;

  std::vector<MlpLayer> layers_;
  std::unique_ptr<float, void (*)(void*)> storage_;
  mutable OneThreadTime time_;
  bool bf16_;
  int64_t width_ = 0;  // widest layer, padded; with bf16 weights at least half the widest input too
  int64_t multiply_adds_ = 0;
  int64_t packed_words_ = 0;  // of 32 bits
};

}  // namespace fastgraph
