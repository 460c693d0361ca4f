// Maps whose values lie channels last (kernel.h), windows over them, and how threads divide what is written to one.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "kernel.h"

namespace fastgraph {

// [N, C, H, W], or [N, C, W] taken as H = 1.
struct Map {
  float* data;
  int64_t images, height, width, channels;
  int64_t pixel;  // floats from one pixel to the next

  explicit Map(const View& v)
      : data(static_cast<float*>(v.data)),
        images(v.sizes[0]),
        height(v.rank == 4 ? v.sizes[2] : 1),
        width(v.sizes[v.rank - 1]),
        channels(v.sizes[1]),
        pixel(v.sizes[1]) {
    // Of a size that is 1 the stride means nothing.
    if (width > 1) pixel = v.strides[v.rank - 1];
    else if (height > 1) pixel = v.strides[2];
    else if (images > 1 && height * width == 1) pixel = v.strides[0];
  }

  int64_t pixels() const { return images * height * width; }
  // Inlined, since an ISA's code calls it too and no copy of that may run elsewhere.
  __attribute__((always_inline)) float* row(int64_t image, int64_t y) const { return data + (image * height + y) * width * pixel; }
};

// Which pixels of the input a pixel of the result looks at.
struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w;
};

// How many windows fit. With ceil_mode a last one may reach beyond the padding, but begins inside the input or its left padding.
inline int64_t window_count(int64_t size, int64_t kernel, int64_t stride, int64_t before, int64_t after, int64_t dilation, bool ceil_mode = false) {
  const int64_t span = size + before + after - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (span < 0) return 0;
  const int64_t count = span / stride + 1;
  return ceil_mode && (count - 1) * stride >= size + before ? count - 1 : count;
}

// What one thread writes at a time: pixels [first, last) of one row, channels [begin, end) of them, whole vectors from a map's first
// channel but at its end, and one vector at least where the map has as many.
struct Span {
  int64_t image, row, first, last, begin, end;
};

constexpr double kChunk_ns = 4000;       // below, handing a chunk out costs more than it brings
constexpr int64_t kRoundsPerThread = 4;  // chunks a thread, so that none waits long for another
constexpr int64_t kPartChannels = 64;

// Calls body(span) for spans that make up the whole of y, of which all take `ns` on one thread.
template <class Body>
void for_spans(const Map& y, double ns, Lease& lease, const Body& body) {
  const int64_t pixels = y.pixels(), rows = y.images * y.height, threads = lease.threads();
  if (pixels == 0 || y.channels == 0) return;
  int64_t chunks = 1;
  if (threads > 1 && ns > kChunk_ns) {
    const double rounds = ns / (2 * kChunk_ns * double(threads));
    chunks = threads * std::clamp<int64_t>(int64_t(std::min(rounds, double(kRoundsPerThread))), 1, kRoundsPerThread);
  }
  const int64_t runs = std::min(chunks, pixels);  // of pixels, from row to row
  const int64_t parts = std::max<int64_t>(1, std::min((chunks + runs - 1) / runs, y.channels / kPartChannels));  // of channels
  const int64_t unit = rows >= 4 * chunks ? y.width : 1;  // whole rows where there are enough
  const auto pixel = [&](int64_t run) { return pixels / unit * run / runs * unit; };
  const auto channel = [&](int64_t part) { return part == parts ? y.channels : y.channels * part / parts / 16 * 16; };
  lease.run(runs * parts, [&](int64_t chunk) {
    const int64_t run = chunk / parts, part = chunk % parts, end = pixel(run + 1);
    for (int64_t p = pixel(run); p < end;) {
      const int64_t row = p / y.width, first = p % y.width, last = std::min(y.width, first + end - p);
      body(Span{row / y.height, row % y.height, first, last, channel(part), channel(part + 1)});
      p += last - first;
    }
  });
}

}  // namespace fastgraph
