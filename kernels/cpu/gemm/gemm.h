// The GEMM core as its callers see it: out = epilogue(a . weight), weights packed in panels of sixteen outputs.
//
//   gemm.h          what is packed and what a row of a family (kernels/runtime/families.cpp) has
//   tile.h          the register tile and the order of sums
//   panels.h        the loops over panels, blocks of k and rows
//   epilogue.h      what becomes of sums: bias, activations, rounding, softmax
//   f32.h, bf16_widened.h, bf16_dot.h   how a format's weights are multiplied; pack.cpp how they are packed
#pragma once

#include <stdint.h>

namespace fastgraph {

enum class Activation : int;

constexpr int kMaxActivations = 4;
constexpr int64_t kPanel = 16;  // outputs
constexpr int64_t kMaxSumBlock = 272;  // input features of the longest block that is summed without a look at the total (tile.h)

// One layer, packed.
struct GemmLayer {
  int64_t in_features, out_features, panel_count;
  const void* panels;                       // as its format packs them, 64-byte aligned
  const float* bias;                        // [panel_count * 16], zeros where there is none
  Activation activations[kMaxActivations];  // applied in this order; softmax only as the last layer's last
  int activation_count;
  bool activates_late;  // in `finish`: the chain's last layer, of so few outputs that most of its vectors' lanes are empty

  // Whether the last panel has eight outputs.
  bool ends_in_half() const { return (out_features + kPanel - 1) % kPanel < kPanel / 2; }
};

// How weights [out_features, in_features] lie in panels: [out / 16][in][16], the last panel padded with zeros, or 8 wide where
// at most eight outputs are left for it, so that the inner loop reads one 64-byte line per input feature.
struct WeightFormat {
  int64_t (*words)(const GemmLayer& layer);  // of 32 bits, whole cache lines
  void (*pack)(const GemmLayer& layer, const void* weight, void* panels);
};

// fp32; bf16 in pairs of input features, [out / 16][in / 2][16][2], one line per pair, the even feature in the low half.
extern const WeightFormat f32_panels, bf16_pairs;

// A row of the families gemm_f32 and gemm_bf16.
struct GemmKernels {
  const WeightFormat* format;
  // out[r, 16 p .. 16 p + 15] = activations(bias + a[r, :] . weight) for panels p in [first, last); out has stride ldo. Where
  // `narrow` exists, `a` is what it made, and results go to `narrowed`, unless that is null, rounded in the same way with
  // stride ldo / 2; a layer may then have no activation but ReLU and must have an even number of outputs, and `out` is scratch.
  void (*layer)(const GemmLayer& layer, const float* a, int64_t lda, int64_t rows, float* out, int64_t ldo, float* narrowed, int64_t first, int64_t last);
  // Null where activations stay fp32. Rounds rows of `in_features` floats to pairs of bf16, (in_features + 1) / 2 words each.
  void (*narrow)(const float* a, int64_t lda, int64_t rows, int64_t in_features, float* to);
};

// A row of the family elementwise: what is done to rows of results.
struct ElementwiseKernels {
  // Copies rows of `out` (stride ldo) to y (stride out_features), with the last layer's softmax, if it has one, and what it
  // activates late.
  void (*finish)(const GemmLayer& last, float* out, int64_t ldo, int64_t rows, float* y);
};

}  // namespace fastgraph
