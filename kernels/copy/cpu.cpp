// Copy on the CPU: rows of values that follow each other on both sides, or a transposition in blocks of 4 x 4 where they follow each other
// along one axis here and another there. SSE is part of x86-64; wider registers would wait for the same memory.
#include "cpu.h"

#include <immintrin.h>
#include <string.h>

#include <algorithm>

#include "../pointwise/loops.h"

namespace fastgraph {
namespace {

using Pair = Loops<2>;  // the result, the input

constexpr int64_t kChunkValues = 16384;  // of one chunk, at least
constexpr int64_t kCallValues = 128;      // from which on a call of memcpy is worth it
constexpr int64_t kBlock = 16;           // a cache line of either side
constexpr int64_t kStrip = 256;          // values of a row of the result that are written while its neighbours are

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void copy_row(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t count) {
  if (x_stride == 1 && y_stride == 1) {
    if (count >= kCallValues) return void(memcpy(y, x, size_t(count) * sizeof(float)));
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) _mm_storeu_ps(y + i, _mm_loadu_ps(x + i));
    for (; i < count; i++) y[i] = x[i];
  } else if (x_stride == 0 && y_stride == 1) {
    std::fill(y, y + count, *x);
  } else {
    for (int64_t i = 0; i < count; i++) y[i * y_stride] = x[i * x_stride];
  }
}

// y[i y_stride + j] = x[j x_stride + i] for four i and four j.
inline void transpose_4x4(const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + x_stride), c = _mm_loadu_ps(x + 2 * x_stride), d = _mm_loadu_ps(x + 3 * x_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(y, a);
  _mm_storeu_ps(y + y_stride, b);
  _mm_storeu_ps(y + 2 * y_stride, c);
  _mm_storeu_ps(y + 3 * y_stride, d);
}

void transpose_block(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t is, int64_t js) {
  const int64_t whole_is = is & ~int64_t(3), whole_js = js & ~int64_t(3);
  for (int64_t i = 0; i < whole_is; i += 4)
    for (int64_t j = 0; j < whole_js; j += 4) transpose_4x4(x + j * x_stride + i, x_stride, y + i * y_stride + j, y_stride);
  for (int64_t i = 0; i < is; i++)
    for (int64_t j = i < whole_is ? whole_js : 0; j < js; j++) y[i * y_stride + j] = x[j * x_stride + i];
}

// Three planes to pixels of three values, or back: what the image of a network is.
void interleave_3(const float* x, int64_t x_stride, float* y, int64_t pixels) {
  int64_t i = 0;
  for (; i + 4 < pixels; i += 4) {  // each store but the last of all writes one value too many, which the next one replaces
    __m128 a = _mm_loadu_ps(x + i), b = _mm_loadu_ps(x + x_stride + i), c = _mm_loadu_ps(x + 2 * x_stride + i), d = _mm_setzero_ps();
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(y + 3 * i, a);
    _mm_storeu_ps(y + 3 * i + 3, b);
    _mm_storeu_ps(y + 3 * i + 6, c);
    _mm_storeu_ps(y + 3 * i + 9, d);
  }
  for (; i < pixels; i++)
    for (int64_t j = 0; j < 3; j++) y[3 * i + j] = x[j * x_stride + i];
}

void deinterleave_3(const float* x, float* y, int64_t y_stride, int64_t pixels) {
  int64_t j = 0;
  for (; j + 4 < pixels; j += 4) {  // each load but the last of all reads a value of the next pixel
    __m128 a = _mm_loadu_ps(x + 3 * j), b = _mm_loadu_ps(x + 3 * j + 3), c = _mm_loadu_ps(x + 3 * j + 6), d = _mm_loadu_ps(x + 3 * j + 9);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(y + j, a);
    _mm_storeu_ps(y + y_stride + j, b);
    _mm_storeu_ps(y + 2 * y_stride + j, c);
  }
  for (; j < pixels; j++)
    for (int64_t i = 0; i < 3; i++) y[i * y_stride + j] = x[3 * j + i];
}

// y[i y_stride + j] = x[j x_stride + i]. The strip of a row of the result that is written stays in L1 or L2 together with its neighbours',
// and a line of the input is read once.
void transpose(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t is, int64_t js) {
  if (js == 3 && y_stride == 3) return interleave_3(x, x_stride, y, is);
  if (is == 3 && x_stride == 3) return deinterleave_3(x, y, y_stride, js);
  for (int64_t strip = 0; strip < js; strip += kStrip)
    for (int64_t i = 0; i < is; i += kBlock)
      for (int64_t j = strip; j < std::min(js, strip + kStrip); j += kBlock)
        transpose_block(x + j * x_stride + i, x_stride, y + i * y_stride + j, y_stride, std::min(kBlock, is - i), std::min(kBlock, js - j));
}

// An axis along which the input's values follow each other while the result's follow each other along the last; -1 where there is none.
int transposed_axis(const Pair& loops) {
  const int last = loops.rank - 1;
  if (loops.strides[last][0] != 1 || loops.strides[last][1] == 1) return -1;
  for (int axis = 0; axis < last; axis++)
    if (loops.strides[axis][1] == 1) return axis;
  return -1;
}

// What is copied at once: the last axis and another one, which is that of a transposition or the one before. Chunks are parts of one of the
// two, and all combinations of the others.
class Work {
 public:
  explicit Work(const Pair& loops) : loops_(loops), last_(loops.rank - 1), other_(transposed_axis(loops)), is_transposed_(other_ >= 0) {
    if (other_ < 0) other_ = last_ - 1;  // and below zero where there is only one
    const int64_t others = other_ >= 0 ? loops.sizes[other_] : 1;
    divided_ = other_ >= 0 && (others >= loops.sizes[last_] || !is_transposed_) ? other_ : last_;
    const int64_t rest = divided_ == last_ ? others : loops.sizes[last_];
    part_ = std::min(loops.sizes[divided_], ceil_div(std::max(kBlock, kChunkValues / rest), kBlock) * kBlock);
    parts_ = ceil_div(loops.sizes[divided_], part_);
    items_ = parts_;
    for (int axis = 0; axis < last_; axis++)
      if (axis != other_) items_ *= loops.sizes[axis];
    each_ = std::max<int64_t>(1, kChunkValues / (part_ * rest));
  }

  int64_t chunks() const { return ceil_div(items_, each_); }

  void run(int64_t chunk) const {
    const int64_t end = std::min(items_, (chunk + 1) * each_);
    for (int64_t item = chunk * each_; item < end; item++) run_item(item);
  }

 private:
  void run_item(int64_t item) const {
    const int64_t begin = item % parts_ * part_, count = std::min(part_, loops_.sizes[divided_] - begin);
    float* y = const_cast<float*>(loops_.data[0]) + begin * loops_.strides[divided_][0];
    const float* x = loops_.data[1] + begin * loops_.strides[divided_][1];
    int64_t index = item / parts_;
    for (int axis = last_ - 1; axis >= 0; axis--) {
      if (axis == other_) continue;
      const int64_t i = index % loops_.sizes[axis];
      index /= loops_.sizes[axis];
      y += i * loops_.strides[axis][0];
      x += i * loops_.strides[axis][1];
    }
    const int64_t others = other_ < 0 ? 1 : divided_ == other_ ? count : loops_.sizes[other_];
    const int64_t values = divided_ == last_ ? count : loops_.sizes[last_];
    const int64_t *strides = loops_.strides[last_], *other_strides = loops_.strides[std::max(other_, 0)];
    if (is_transposed_) return transpose(x, strides[1], y, other_strides[0], others, values);
    for (int64_t i = 0; i < others; i++) copy_row(x + i * other_strides[1], strides[1], y + i * other_strides[0], strides[0], values);
  }

  const Pair& loops_;
  int last_, other_;
  bool is_transposed_;
  int divided_;
  int64_t part_, parts_;  // of the divided axis
  int64_t items_, each_;  // of all, and of a chunk
};

}  // namespace

// 50 GB/s, read and written.
double Copy::estimate_ns(const View* inputs) const { return 30 + 0.16 * double(inputs[0].numel()); }

void Copy::run(const View* inputs, const View* outputs, Lease& lease) const {
  Pair loops(outputs[0]);
  loops.add(inputs[0]);
  if (loops.is_empty()) return;
  loops.collapse();
  const Work work(loops);
  lease.run(work.chunks(), [&](int64_t chunk) { work.run(chunk); });
}

}  // namespace fastgraph
