// conv_pool on the CPU: sizes, and the division of a call into strips of pooled rows.
#include "cpu.h"

#include <algorithm>
#include <stdexcept>

#include "../cpu/isa.h"
#include "../cpu/pool.h"
#include "../mlp/cpu.h"

namespace fastgraph {
namespace {

constexpr int64_t kLanes = 16;

// Pooled rows in a strip: neighbouring strips compute pool_kernel_h - pool_stride_h convolution rows twice
// (3 % of Net at 16), while the window of image rows should stay in L2.
constexpr int64_t kStripRows = 16;
constexpr int64_t kWindowFloats = 64 * 1024;

// Rows of an mlp that follows, taken at once: their activations stay in L1 and L2.
constexpr int64_t kMlpRows = 96;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a) { return ceil_div(a, kLanes) * kLanes; }

int64_t conv_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// As torch.nn.MaxPool2d: with ceil_mode a last window may reach beyond the padding, but must begin inside the input or its left padding.
int64_t pool_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t span = size + 2 * padding - kernel;
  if (span < 0 && !(ceil_mode && span > -stride)) return 0;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) out--;
  return out;
}

}  // namespace

ConvPool::ConvPool(const ConvPoolGeometry& geometry, const float* weight, const float* bias)
    : geometry_(geometry),
      weight_(weight, weight + geometry.out_channels * geometry.in_channels * geometry.kernel_h * geometry.kernel_w),
      bias_(size_t(geometry.out_channels), 0.0f) {
  if (bias) bias_.assign(bias, bias + geometry.out_channels);
}

ConvPoolShape ConvPool::shape(int64_t height, int64_t width, int64_t batch, int threads) const {
  const ConvPoolGeometry& g = geometry_;
  ConvPoolShape s{};
  s.g = g;
  s.height = height;
  s.width = width;
  s.conv_height = conv_size(height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  s.conv_width = conv_size(width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  s.out_height = s.conv_height ? pool_size(s.conv_height, g.pool_kernel_h, g.pool_stride_h, g.pool_padding_h, g.ceil_mode) : 0;
  s.out_width = s.conv_width ? pool_size(s.conv_width, g.pool_kernel_w, g.pool_stride_w, g.pool_padding_w, g.ceil_mode) : 0;
  if (s.out_height < 1 || s.out_width < 1) throw std::invalid_argument("conv_pool: the image is smaller than the kernel and the pool");
  s.taps = g.in_channels * g.kernel_h * g.kernel_w;
  s.phase_width = round_up(round_up(s.conv_width) + (g.kernel_w - 1) * g.dilation_w / g.stride_w);
  s.open_rows = ceil_div(g.pool_kernel_h, g.pool_stride_h);
  const int64_t vector_reads = std::min<int64_t>(g.pool_stride_w, 2) * round_up(s.out_width) + g.pool_kernel_w;
  s.ring_width = kRingMargin + round_up(std::max({round_up(s.conv_width), s.conv_width + g.pool_kernel_w, vector_reads}));

  // Strips: as equal as possible, and a multiple of the threads in number.
  const auto window_floats = [&](int64_t rows) {
    s.window_rows = ((rows - 1) * g.pool_stride_h + g.pool_kernel_h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
    return g.in_channels * s.window_rows * g.stride_w * s.phase_width;
  };
  int64_t rows = std::min(kStripRows, s.out_height);
  while (rows > 1 && window_floats(rows) > kWindowFloats) rows = (rows + 1) / 2;
  const int64_t strips = ceil_div(batch * ceil_div(s.out_height, rows), threads) * threads;
  s.strip_rows = std::max<int64_t>(1, std::min(rows, ceil_div(s.out_height, std::max<int64_t>(1, strips / std::max<int64_t>(1, batch)))));
  s.scratch_floats = s.open_rows * kMaxTileRows * s.ring_width + window_floats(s.strip_rows) + kLanes;
  return s;
}

// The offsets in the padded copy, then those in the image itself.
std::vector<int64_t> ConvPool::offsets(const ConvPoolShape& s) const {
  const ConvPoolGeometry& g = geometry_;
  std::vector<int64_t> offsets(size_t(2 * s.taps));
  int64_t k = 0;
  for (int64_t c = 0; c < g.in_channels; c++)
    for (int64_t y = 0; y < g.kernel_h; y++)
      for (int64_t x = 0; x < g.kernel_w; x++, k++) {
        const int64_t column = x * g.dilation_w, row = y * g.dilation_h;
        offsets[size_t(k)] = 4 * (((c * s.window_rows + row) * g.stride_w + column % g.stride_w) * s.phase_width + column / g.stride_w);
        offsets[size_t(s.taps + k)] = 4 * ((c * s.height + row) * s.width + column);
      }
  return offsets;
}

void ConvPool::run_strip(const ConvPoolShape& s, const std::vector<int64_t>& offsets, const float* x, int64_t batch, int64_t image,
                         int64_t first, int64_t count, float* out, int64_t out_channel, float* scratch) const {
  const int64_t image_floats = geometry_.in_channels * s.height * s.width;
  isa().conv_pool.strip(s, weight_.data(), bias_.data(), offsets.data(), offsets.data() + s.taps, x + image * image_floats,
                        (batch - image) * image_floats, first, count, out, out_channel, s.out_width, scratch);
}

double ConvPool::work_ns(const ConvPoolShape& s, int64_t batch) const {
  return double(batch * s.conv_height * s.conv_width) * double(geometry_.out_channels * s.taps) / 16;
}

void ConvPool::run(const float* x, int64_t batch, int64_t height, int64_t width, float* y, int threads) const {
  const ConvPoolShape s = shape(height, width, batch, threads);
  const std::vector<int64_t> tap_offsets = offsets(s);
  const int64_t strips = ceil_div(s.out_height, s.strip_rows);
  const int64_t out_floats = s.out_height * s.out_width;
  Lease lease(threads, work_ns(s, batch));
  lease.run(batch * strips, [&](int64_t chunk) {
    const int64_t n = chunk / strips, first = chunk % strips * s.strip_rows, count = std::min(s.strip_rows, s.out_height - first);
    float* out = y + n * geometry_.out_channels * out_floats + first * s.out_width;
    run_strip(s, tap_offsets, x, batch, n, first, count, out, out_floats, thread_arena(s.scratch_floats));
  });
}

void ConvPool::run_mlp(const Mlp& mlp, const float* x, int64_t batch, int64_t height, int64_t width, float* y, int threads) const {
  const ConvPoolShape s = shape(height, width, batch, threads);
  const std::vector<int64_t> tap_offsets = offsets(s);
  const int64_t strips = ceil_div(s.out_height, s.strip_rows), channels = geometry_.out_channels;
  const int64_t features = mlp.out_features();
  const int64_t strip_rows = channels * s.strip_rows;
  const double rows = double(batch * channels * s.out_height);
  Lease lease(threads, work_ns(s, batch) + rows * double(mlp.multiply_adds()) / 16);
  lease.run(batch * strips, [&](int64_t chunk) {
    const int64_t n = chunk / strips, first = chunk % strips * s.strip_rows, count = std::min(s.strip_rows, s.out_height - first);
    float* scratch = thread_arena(round_up(s.scratch_floats) + round_up(strip_rows * s.out_width) + round_up(strip_rows * features) +
                                  mlp.scratch_floats(kMlpRows));
    float* pooled = scratch + round_up(s.scratch_floats);  // [channels][count][out_width]
    float* result = pooled + round_up(strip_rows * s.out_width);
    float* mlp_scratch = result + round_up(strip_rows * features);
    run_strip(s, tap_offsets, x, batch, n, first, count, pooled, count * s.out_width, scratch);
    for (int64_t row = 0; row < channels * count; row += kMlpRows)
      mlp.run_block(pooled + row * s.out_width, s.out_width, std::min(kMlpRows, channels * count - row), result + row * features, mlp_scratch);
    for (int64_t o = 0; o < channels; o++)
      std::copy(result + o * count * features, result + (o + 1) * count * features, y + ((n * channels + o) * s.out_height + first) * features);
  });
}

}  // namespace fastgraph
