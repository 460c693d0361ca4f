// mlp on the CPU: packing, and the division of a call into chunks.
#include "cpu.h"

#include <algorithm>
#include <stdexcept>

#include "../cpu/activation.h"
#include "../cpu/arena.h"
#include "../cpu/bf16.h"

namespace fastgraph {
namespace {

// Rows that one chunk takes through all layers: enough to pay for reading the weights once more,
// few enough that the activations stay in L2 (96 rows x 1024 floats x 4 B = 384 KB).
constexpr int64_t kBlockRows = 96;

// Below so many rows a thread, threads divide the columns of each layer instead of the rows.
constexpr int64_t kMinRowsPerThread = 12;

// One thread's time, roughly: 16 multiply-adds a nanosecond, or the weights at 12 bytes a nanosecond.
double work_ns(double multiply_adds, double weight_bytes) { return std::max(multiply_adds / 16, weight_bytes / 12); }

int64_t rows_of(const View& x) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < x.rank; i++) rows *= x.sizes[i];
  return rows;
}

// Floats from one row of a layer's results to the next in scratch memory: an odd number of cache lines, or rows would meet in a few
// sets of the caches.
int64_t row_stride(const GemmLayer& layer) { return (layer.panel_count | 1) * kPanel; }

bool ends_in_softmax(const GemmLayer& layer) {
  const Activation tail = layer.activation_count > 0 ? layer.activations[layer.activation_count - 1] : Activation::none;
  return tail == Activation::softmax || tail == Activation::log_softmax;
}

// Whether a chain's last layer can write its results where the caller wants them: whole panels, each of them once.
bool writes_in_place(const GemmLayer& last) {
  return last.out_features % kPanel == 0 && last.in_features <= kMaxSumBlock && !ends_in_softmax(last) && !last.activates_late;
}

// Whether its results can be narrowed as they come: whole pairs, since what stands beyond the last output may be NaN.
bool can_narrow(const GemmLayer& layer) {
  if (layer.out_features % 2 != 0) return false;
  return layer.activation_count == 0 || (layer.activation_count == 1 && layer.activations[0] == Activation::relu);
}

}  // namespace

Mlp::Mlp(const std::vector<Source>& sources, const GemmKernels& gemm, const ElementwiseKernels& elementwise)
    : storage_(nullptr, free), gemm_(gemm), elementwise_(elementwise) {
  const WeightFormat& format = *gemm.format;
  for (const Source& s : sources) {
    GemmLayer layer{};
    layer.in_features = s.in_features;
    layer.out_features = s.out_features;
    layer.panel_count = (s.out_features + kPanel - 1) / kPanel;
    if (s.activations.size() > size_t(kMaxActivations)) throw std::invalid_argument("mlp: too many activations in one layer");
    for (Activation a : s.activations) layer.activations[layer.activation_count++] = a;
    packed_words_ += format.words(layer) + layer.panel_count * kPanel;
    width_ = std::max({width_, row_stride(layer), gemm.narrow ? (s.in_features + 1) / 2 : 0});
    multiply_adds_ += s.in_features * s.out_features;
    layers_.push_back(layer);
  }
  GemmLayer& last = layers_.back();
  last.activates_late = last.out_features <= kPanel / 2 && !ends_in_softmax(last);
  storage_ = aligned_floats(packed_words_);
  float* next = storage_.get();
  for (size_t i = 0; i < layers_.size(); i++) {
    GemmLayer& layer = layers_[i];
    format.pack(layer, sources[i].weight, next);
    layer.panels = next;
    next += format.words(layer);
    std::fill(next, next + layer.panel_count * kPanel, 0.0f);
    if (sources[i].bias) std::copy(sources[i].bias, sources[i].bias + layer.out_features, next);
    layer.bias = next;
    next += layer.panel_count * kPanel;
  }
}

template <class Step>
void Mlp::for_layers(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch, const Step& step) const {
  bool is_narrow = false;
  for (size_t i = 0; i < layers_.size(); i++) {
    const GemmLayer& layer = layers_[i];
    const bool in_place = i + 1 == layers_.size() && writes_in_place(layer);
    float* out = in_place ? y : scratch + (i % 2) * rows * width_;
    float* narrowed = scratch + (2 + i % 2) * rows * width_;
    const int64_t ldo = in_place ? layer.out_features : row_stride(layer);
    if (gemm_.narrow && !is_narrow) {
      gemm_.narrow(x, ldx, rows, layer.in_features, narrowed);
      x = narrowed;
      ldx = (layer.in_features + 1) / 2;
    }
    is_narrow = gemm_.narrow && i + 1 < layers_.size() && can_narrow(layer);
    float* next = is_narrow ? scratch + (2 + (i + 1) % 2) * rows * width_ : nullptr;
    step(layer, x, ldx, out, ldo, next);
    x = is_narrow ? next : out;
    ldx = is_narrow ? ldo / 2 : ldo;
  }
  if (x != y) elementwise_.finish(layers_.back(), const_cast<float*>(x), ldx, rows, y);
}

void Mlp::run_block(const float* x, int64_t ldx, int64_t rows, float* y, float* scratch) const {
  for_layers(x, ldx, rows, y, scratch, [&](const GemmLayer& layer, const float* a, int64_t lda, float* out, int64_t ldo, float* narrowed) {
    gemm_.layer(layer, a, lda, rows, out, ldo, narrowed, 0, layer.panel_count);
  });
}

// Few rows: each layer's columns are divided, so that every weight is read by one thread only.
void Mlp::run_columns(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const {
  float* scratch = thread_arena(scratch_floats(rows));
  for_layers(x, ldx, rows, y, scratch, [&](const GemmLayer& layer, const float* a, int64_t lda, float* out, int64_t ldo, float* narrowed) {
    // A chunk a thread: the caller draws the first one, so that call after call each finds its weights in its own L2.
    const int64_t panels = std::max<int64_t>(1, (layer.panel_count + lease.threads() - 1) / lease.threads());
    lease.run((layer.panel_count + panels - 1) / panels, [&](int64_t c) {
      gemm_.layer(layer, a, lda, rows, out, ldo, narrowed, c * panels, std::min((c + 1) * panels, layer.panel_count));
    });
  });
}

// In blocks of rows, since what is widened should not go through memory.
void Mlp::run_bf16(const uint16_t* x, int64_t ldx, int64_t rows, uint16_t* y, Lease& lease) const {
  const int64_t in = in_features(), out = out_features(), block = std::max<int64_t>(1, std::min(rows, kBlockRows * lease.threads()));
  std::vector<float> wide(size_t(block * (in + out)));
  float* result = wide.data() + block * in;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    for (int64_t r = 0; r < count; r++) std::transform(x + (first + r) * ldx, x + (first + r) * ldx + in, wide.data() + r * in, widen);
    run_f32(wide.data(), in, count, result, lease);
    std::transform(result, result + count * out, y + first * out, narrow);
  }
}

double Mlp::block_estimate_ns(int64_t rows) const { return work_ns(double(multiply_adds_) * double(rows), double(packed_bytes())); }

double Mlp::estimate_ns(const View* inputs) const { return block_estimate_ns(rows_of(inputs[0])); }

void Mlp::run(const View* inputs, const View* outputs, Lease& lease) const {
  const View& x = inputs[0];
  const int64_t rows = rows_of(x), ldx = x.rank == 2 ? x.strides[0] : in_features();
  if (rows == 0 || out_features() == 0) return;
  if (x.dtype == DType::bf16) run_bf16(static_cast<const uint16_t*>(x.data), ldx, rows, static_cast<uint16_t*>(outputs[0].data), lease);
  else run_f32(static_cast<const float*>(x.data), ldx, rows, static_cast<float*>(outputs[0].data), lease);
}

void Mlp::run_f32(const float* x, int64_t ldx, int64_t rows, float* y, Lease& lease) const {
  if (in_features() == 0) ldx = 0;  // x may be null
  if (lease.threads() > 1 && rows < kMinRowsPerThread * lease.threads()) run_columns(x, ldx, rows, y, lease);
  else run_rows(x, ldx, rows, y, lease);
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
