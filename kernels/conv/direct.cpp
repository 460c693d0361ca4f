// Direct sums: pixels are the rows of a product with the panels. Their taps are read
//
//   where they are        nothing is padded: one run of all pixels for 1 x 1 kernels that advance by one, else a run a row of outputs
//   from padded rows      copied with the zeros around them, channels last whatever they were
//   from rows of patches  copied tap by tap where rows of outputs are too short for tiles
#include <string.h>

#include <algorithm>

#include "../cpu/arena.h"
#include "products.h"

namespace fastgraph {
namespace {

constexpr int64_t kShortRow = 6;  // outputs

enum class Source { flat, rows, padded, patches };

class Direct {
 public:
  Direct(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, int threads)
      : layer_(layer), g_(layer.geometry), call_(call), source_(source()), blocks_(taps()), division_(divide(threads)),
        units_(layer, run_length(), division_.parts),
        sums_{layer, epilogue, units_, blocks_, source_ == Source::patches ? patch_floats() / g_.groups : g_.group_inputs(), call.y_stride, call.residual_stride} {}

  void run(Lease& lease) const {
    division_.run(rows(), units_.count(), lease, [&](int64_t first, int64_t last, int64_t first_unit, int64_t last_unit) {
      const int64_t copies = copied_floats(first, last);
      float* const scratch = thread_arena(copies + sums_.floats((last - first) * row_pixels()));
      copy(first, last, scratch);
      sums_.run(runs(first, last, scratch), first_unit, last_unit, scratch + copies);
    });
  }

 private:
  Source source() const {
    const bool is_padded = g_.padding_top || g_.padding_left || g_.padding_bottom || g_.padding_right;
    if (call_.channel_stride == 1 && !is_padded) {
      if (g_.kernel_h * g_.kernel_w == 1 && g_.stride_h * g_.stride_w == 1) return Source::flat;
      if (call_.out_width >= kShortRow) return Source::rows;
    }
    return call_.out_width >= kShortRow ? Source::padded : Source::patches;
  }

  // What the division counts: rows of outputs, or single pixels where they need no rows.
  int64_t rows() const { return is_flat() ? call_.out_pixels() : call_.batch * call_.out_height; }
  int64_t row_pixels() const { return is_flat() ? 1 : call_.out_width; }
  bool is_flat() const { return source_ == Source::flat || source_ == Source::patches; }
  int64_t run_length() const { return is_flat() ? std::min<int64_t>(call_.out_pixels(), 96) : call_.out_width; }

  // Of padded rows.
  int64_t width() const { return (call_.out_width - 1) * g_.stride_w + (g_.kernel_w - 1) * g_.dilation_w + 1; }
  int64_t span() const { return (g_.kernel_h - 1) * g_.dilation_h + 1; }

  int64_t patch_floats() const { return g_.kernel_h * g_.kernel_w * g_.in_channels; }

  int64_t pixel_stride() const { return source_ == Source::padded ? g_.in_channels : call_.pixel_stride; }
  int64_t row_stride() const { return source_ == Source::padded ? width() * g_.in_channels : call_.row_stride; }

  std::vector<ConvSegment> taps() const {
    const bool is_run = g_.groups == 1 && !g_.spread && g_.dilation_w == 1 && pixel_stride() == g_.in_channels;
    const int64_t inputs = g_.spread ? g_.spread : g_.group_inputs();
    std::vector<ConvSegment> taps;
    if (is_flat() && !g_.spread) return {{0, g_.taps()}};
    for (int64_t y = 0; y < g_.kernel_h; y++) {
      const int64_t row = y * g_.dilation_h * row_stride();
      if (is_run) taps.push_back({row, g_.kernel_w * g_.in_channels});
      for (int64_t x = 0; !is_run && x < g_.kernel_w; x++)
        taps.push_back({is_flat() ? (y * g_.kernel_w + x) * g_.group_inputs() : row + x * g_.dilation_w * pixel_stride(), inputs});
    }
    return taps;
  }

  ConvDivision divide(int threads) const {
    const int64_t read = call_.batch * call_.height * call_.width * g_.in_channels;
    const int64_t copies = source_ == Source::patches ? patch_floats() : g_.in_channels * g_.stride_h * (is_flat() ? 1 : width());
    const int64_t sums = row_pixels() * 2 * kConvLanes, weights = g_.out_channels * g_.taps();
    return ConvDivision::of(rows(), row_pixels(), copies + sums, weights, read, g_.groups * g_.group_panels(), threads);
  }

  // Calls part(image, first row of outputs, last) for the images of rows [first, last).
  template <class Part>
  void for_images(int64_t first, int64_t last, const Part& part) const {
    while (first < last) {
      const int64_t image = first / call_.out_height, from = first % call_.out_height, to = std::min(call_.out_height, from + last - first);
      part(image, from, to);
      first += to - from;
    }
  }

  // Rows of inputs that are copied for rows [first, last) of outputs, or pixels where patches are.
  int64_t copied_rows(int64_t first, int64_t last) const {
    if (source_ == Source::patches) return last - first;
    int64_t rows = 0;
    if (source_ == Source::padded) for_images(first, last, [&](int64_t, int64_t from, int64_t to) { rows += (to - from - 1) * g_.stride_h + span(); });
    return rows;
  }
  int64_t copied_floats(int64_t first, int64_t last) const {
    return (copied_rows(first, last) * (source_ == Source::patches ? patch_floats() : row_stride()) + kConvLanes - 1) / kConvLanes * kConvLanes;
  }

  void copy(int64_t first, int64_t last, float* to) const {
    for (int64_t i = first; source_ == Source::patches && i < last; i++) copy_patch(i, to + (i - first) * patch_floats());
    if (source_ != Source::padded) return;
    for_images(first, last, [&](int64_t image, int64_t from, int64_t end) {
      const int64_t begin = from * g_.stride_h - g_.padding_top, rows = (end - from - 1) * g_.stride_h + span();
      for (int64_t r = 0; r < rows; r++, to += row_stride()) copy_row(image, begin + r, to);
    });
  }

  void copy_row(int64_t image, int64_t y, float* to) const {
    const int64_t C = g_.in_channels, begin = std::min(g_.padding_left, width()), end = std::min(begin + call_.width, width());
    if (y < 0 || y >= call_.height) return void(memset(to, 0, size_t(width() * C) * sizeof(float)));
    memset(to, 0, size_t(begin * C) * sizeof(float));
    copy_pixels(layer_, call_, call_.x + image * call_.image_stride + y * call_.row_stride, end - begin, to + begin * C);
    memset(to + end * C, 0, size_t((width() - end) * C) * sizeof(float));
  }

  // The taps of output `pixel`, group by group.
  void copy_patch(int64_t pixel, float* to) const {
    const int64_t image = pixel / (call_.out_height * call_.out_width), row = pixel / call_.out_width % call_.out_height;
    const int64_t inputs = g_.group_inputs(), top = row * g_.stride_h - g_.padding_top, left = pixel % call_.out_width * g_.stride_w - g_.padding_left;
    for (int64_t group = 0; group < g_.groups; group++)
      for (int64_t i = 0; i < g_.kernel_h; i++)
        for (int64_t j = 0; j < g_.kernel_w; j++, to += inputs) {
          const int64_t y = top + i * g_.dilation_h, x = left + j * g_.dilation_w;
          if (y < 0 || y >= call_.height || x < 0 || x >= call_.width) {
            memset(to, 0, size_t(inputs) * sizeof(float));
            continue;
          }
          const float* from = call_.x + image * call_.image_stride + y * call_.row_stride + x * call_.pixel_stride + group * inputs * call_.channel_stride;
          if (call_.channel_stride == 1) memcpy(to, from, size_t(inputs) * sizeof(float));
          else for (int64_t c = 0; c < inputs; c++) to[c] = from[c * call_.channel_stride];
        }
  }

  PixelRun run_of(const float* pixels, int64_t stride, int64_t pixel, int64_t count) const {
    return {pixels, stride, count, call_.y + pixel * call_.y_stride, call_.residual ? call_.residual + pixel * call_.residual_stride : nullptr};
  }

  std::vector<PixelRun> runs(int64_t first, int64_t last, const float* copies) const {
    if (source_ == Source::flat) return {run_of(call_.x + first * call_.pixel_stride, call_.pixel_stride, first, last - first)};
    if (source_ == Source::patches) return {run_of(copies, patch_floats(), first, last - first)};
    std::vector<PixelRun> runs;
    runs.reserve(size_t(last - first));
    for_images(first, last, [&](int64_t image, int64_t from, int64_t to) {
      if (source_ == Source::rows) copies = call_.x + image * call_.image_stride + from * g_.stride_h * call_.row_stride;
      for (int64_t row = from; row < to; row++)
        runs.push_back(run_of(copies + (row - from) * g_.stride_h * row_stride(), g_.stride_w * pixel_stride(),
                              (image * call_.out_height + row) * call_.out_width, call_.out_width));
      copies += ((to - from - 1) * g_.stride_h + span()) * row_stride();
    });
    return runs;
  }

  const ConvLayer& layer_;
  const ConvGeometry& g_;
  const ConvCall& call_;
  Source source_;
  ConvBlocks blocks_;
  ConvDivision division_;
  ConvUnits units_;
  ConvSums sums_;
};

}  // namespace

void run_direct(const ConvLayer& layer, const ConvEpilogue& epilogue, const ConvCall& call, Lease& lease) {
  Direct(layer, epilogue, call, lease.threads()).run(lease);
}

}  // namespace fastgraph
