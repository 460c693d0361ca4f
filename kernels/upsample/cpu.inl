// One span of a resized map.
#include "../cpu/simd/simd.h"
#include "cpu.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

// Calls each(i, column, out) for the span's pixels, and pixel(c, lanes, out) for all vectors of one.
template <class Pixel>
FASTGRAPH_INLINE void resize_span(const Map& y, const Source* columns, const Span& span, const Pixel& pixel) {
  float* out = y.row(span.image, span.row) + span.first * y.pixel;
  for (int64_t p = span.first; p < span.last; p++, columns++, out += y.pixel) pixel(*columns, out);
}

[[maybe_unused]] void nearest_span(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span) {
  const float* row = x.row(span.image, rows.pixel[0]);
  resize_span(y, columns, span, [&](const Source& column, float* out) {
    const float* from = row + column.pixel[0] * x.pixel;
    int64_t c = span.begin;
    for (; c + kLanes <= span.end; c += kLanes) store(out + c, load(from + c));
    if (c < span.end) store_first(out + c, load_first(from + c, span.end - c), span.end - c);
  });
}

// Every pixel takes part, also with weight 0, as in ATen: infinities become NaN there.
[[maybe_unused]] void linear_span(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span) {
  const float* row = x.row(span.image, rows.pixel[0]);
  resize_span(y, columns, span, [&](const Source& column, float* out) {
    const float *left = row + column.pixel[0] * x.pixel, *right = row + column.pixel[1] * x.pixel;
    const F16 a = broadcast(column.weight[0]), b = broadcast(column.weight[1]);
    int64_t c = span.begin;
    for (; c + kLanes <= span.end; c += kLanes) store(out + c, fma(b, load(right + c), mul(a, load(left + c))));
    if (c < span.end) {
      const int64_t n = span.end - c;
      store_first(out + c, fma(b, load_first(right + c, n), mul(a, load_first(left + c, n))), n);
    }
  });
}

FASTGRAPH_INLINE F16 between(F16 (&corners)[4], const F16 (&weights)[4]) {
  const F16 upper = fma(weights[1], corners[1], mul(weights[0], corners[0]));
  const F16 lower = fma(weights[1], corners[3], mul(weights[0], corners[2]));
  return fma(weights[3], lower, mul(weights[2], upper));
}

[[maybe_unused]] void bilinear_span(const Map& x, const Map& y, const Source& rows, const Source* columns, const Span& span) {
  const float *upper = x.row(span.image, rows.pixel[0]), *lower = x.row(span.image, rows.pixel[1]);
  resize_span(y, columns, span, [&](const Source& column, float* out) {
    const float* from[4];
    for (int i = 0; i < 4; i++) from[i] = (i < 2 ? upper : lower) + column.pixel[i % 2] * x.pixel;
    const F16 weights[4] = {broadcast(column.weight[0]), broadcast(column.weight[1]), broadcast(rows.weight[0]), broadcast(rows.weight[1])};
    F16 corners[4];
    int64_t c = span.begin;
    for (; c + kLanes <= span.end; c += kLanes) {
      for (int i = 0; i < 4; i++) corners[i] = load(from[i] + c);
      store(out + c, between(corners, weights));
    }
    if (c < span.end) {
      for (int i = 0; i < 4; i++) corners[i] = load_first(from[i] + c, span.end - c);
      store_first(out + c, between(corners, weights), span.end - c);
    }
  });
}

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
