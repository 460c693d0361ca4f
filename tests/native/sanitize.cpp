// The native core on random shapes, between guards and against plain loops; for a build with sanitizers.
// tests/test_kernels_sanitize.py compiles and runs it:
//
//   sanitize SEED CASES     CASES random calls of each op on every ISA; exit status 1 and one line at the first wrong one
#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "../../kernels/conv/cpu.h"
#include "../../kernels/conv_pool_mlp/cpu.h"
#include "../../kernels/runtime/families.h"
#include "elementwise.h"
#include "guarded.h"
#include "reference.h"

namespace fastgraph {

extern std::atomic<int> threads_with_scratch;  // arena.cpp

namespace tests {
namespace {

constexpr float kUnwritten = -12345;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t whole(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(engine_); }
  float normal(double scale) { return float(std::normal_distribution<double>(0, scale)(engine_)); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> values) { return values.begin()[whole(0, int64_t(values.size()) - 1)]; }

 private:
  std::mt19937_64 engine_;
};

void fill(Guarded& values, Random& random, double scale) {
  for (int64_t i = 0; i < values.size(); i++) values[i] = random.normal(scale);
}

[[noreturn]] void fail(const std::string& what, const std::string& where) {
  printf("%s: %s\n", where.c_str(), what.c_str());
  exit(1);
}

bool is_close(float actual, const Bounded& expected) {
  if (std::isnan(expected.value)) return std::isnan(actual);
  if (std::isinf(expected.value)) return double(actual) == expected.value;
  return std::abs(double(actual) - expected.value) <= expected.error;
}

// The same bits, or both NaN.
bool is_same(float a, float b) { return memcmp(&a, &b, sizeof(a)) == 0 || (std::isnan(a) && std::isnan(b)); }

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (int i = 0; i < kCapabilityCount; i++)
    if (kCapabilities[i].is_supported()) names.push_back(kCapabilities[i].name);
  return names;
}

View view(Guarded& values, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  return {values.data(), DType::f32, int(sizes.size()), sizes.data(), strides.data()};
}

// Packs on every ISA, pack() giving a kernel, and runs it on x alone and with a number of threads: the same bits every time, close to
// what is expected. `shape` has the result's sizes and strides, where a kernel looks at them.
template <class Pack>
void check(const std::vector<Bounded>& expected, std::vector<Guarded*> inputs, const View& x, int threads, const std::string& where, const Pack& pack,
           const View& shape = {nullptr, DType::f32, 0, nullptr, nullptr}) {
  std::unique_ptr<Guarded> first;
  for (const std::string& name : supported()) {
    select_capability(name.c_str());
    const auto kernel = pack();
    for (int count : {1, threads}) {
      const std::string here = where + " " + name + " threads " + std::to_string(count);
      auto y = std::make_unique<Guarded>(int64_t(expected.size()), kUnwritten);
      const View output{y->data(), DType::f32, shape.rank, shape.sizes, shape.strides};
      kernel->run(&x, &output, count);
      kernel->run(&x, &output, count);  // at once: now workers take part in the smallest job too
      for (int64_t i = 0; i < y->size(); i++) {
        const Bounded& e = expected[size_t(i)];
        if (!is_close((*y)[i], e)) fail("[" + std::to_string(i) + "] is " + std::to_string((*y)[i]) + ", not " + std::to_string(e.value) + " +- " + std::to_string(e.error), here);
        if (first && !is_same((*y)[i], (*first)[i])) fail("[" + std::to_string(i) + "] has other bits", here);
      }
      if (!y->untouched()) fail("wrote beyond the result", here);
      if (!first) first = std::move(y);
    }
  }
  for (Guarded* input : inputs)
    if (!input->untouched()) fail("wrote beside an input", where);
}

struct Chain {
  std::vector<std::unique_ptr<Guarded>> tensors;
  std::vector<Mlp::Source> layers;
  std::string name = "mlp";
};

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu,   Activation::gelu_tanh,
                                       Activation::silu, Activation::tanh, Activation::sigmoid};

// One to four layers; a softmax only at the end. In one chain of eight a layer has no outputs.
Chain random_chain(Random& random, int64_t in_features, int64_t largest) {
  Chain chain;
  const int64_t count = random.whole(1, 4);
  for (int64_t i = 0; i < count; i++) {
    const int64_t sizes[] = {random.whole(1, 20), random.whole(1, largest), 16 * random.whole(1, largest / 16)};
    const int64_t out = random.chance(0.03) ? 0 : sizes[random.whole(0, 2)];
    auto weight = std::make_unique<Guarded>(out * in_features), bias = std::make_unique<Guarded>(out);
    fill(*weight, random, std::sqrt(2.0 / double(std::max<int64_t>(in_features, 1))));
    fill(*bias, random, 1);
    Mlp::Source layer{weight->data(), random.chance(0.7) ? bias->data() : nullptr, out, in_features, {}};
    for (int64_t a = random.whole(0, 2); a > 0; a--) layer.activations.push_back(kActivations[random.whole(0, 6)]);
    if (i == count - 1 && random.chance(0.4)) layer.activations.push_back(random.one_of({Activation::softmax, Activation::log_softmax}));
    chain.name += " " + std::to_string(in_features) + "->" + std::to_string(out);
    for (Activation a : layer.activations) chain.name += "+" + std::to_string(int(a));
    chain.layers.push_back(layer);
    chain.tensors.push_back(std::move(weight));
    chain.tensors.push_back(std::move(bias));
    in_features = out;
  }
  return chain;
}

std::unique_ptr<Mlp> pack(const Chain& chain) {
  return std::make_unique<Mlp>(chain.layers, families::gemm_f32.kernels(), families::elementwise.kernels());
}

std::vector<Guarded*> addresses(const Chain& chain) {
  std::vector<Guarded*> all;
  for (const auto& tensor : chain.tensors) all.push_back(tensor.get());
  return all;
}

std::vector<Bounded> exact(const float* values, int64_t count) {
  std::vector<Bounded> row;
  for (int64_t i = 0; i < count; i++) row.push_back({values[i], 0});
  return row;
}

void append(std::vector<Bounded>& all, const std::vector<Bounded>& row) { all.insert(all.end(), row.begin(), row.end()); }

void try_mlp(Random& random, const std::string& where) {
  const int64_t in_features = random.chance(0.05) ? 0 : random.chance(0.1) ? random.whole(250, 530) : random.whole(1, 70);
  const int64_t rows = random.one_of({random.whole(0, 3), random.whole(1, 30), random.whole(90, 100)});
  const Chain chain = random_chain(random, in_features, 130);
  const int64_t stride = in_features + (in_features ? random.one_of<int64_t>({0, 0, 1, 13}) : 1);
  Guarded x(rows && in_features ? (rows - 1) * stride + in_features : 0, NAN);  // NaN stays between the rows
  for (int64_t i = 0; i < rows; i++)
    for (int64_t k = 0; k < in_features; k++) x[i * stride + k] = random.normal(1);
  if (x.size() && random.chance(0.2)) x[random.whole(0, rows - 1) * stride] = random.one_of<float>({NAN, HUGE_VALF, -HUGE_VALF, 1e-42f});

  std::vector<Bounded> expected;
  for (int64_t i = 0; i < rows; i++) append(expected, mlp(chain.layers, exact(x.data() + (x.size() ? i * stride : 0), in_features)));
  auto inputs = addresses(chain);
  inputs.push_back(&x);
  const std::vector<int64_t> sizes = {rows, in_features}, strides = {stride, 1};
  check(expected, inputs, view(x, sizes, strides), int(random.whole(2, 4)), where + chain.name + " rows " + std::to_string(rows), [&] { return pack(chain); });
}

struct Images {
  ConvPoolGeometry geometry;
  int64_t batch, height, width;
  std::string name;
};

// Sizes at which kernel and pool fit; half of them such as Winograd's form takes.
Images random_images(Random& random) {
  for (;;) {
    const bool three_wide = random.chance(0.5);
    const auto few = [&](int64_t least, int64_t most) { return random.chance(0.6) ? least : random.whole(least, most); };
    ConvPoolGeometry g{random.whole(1, 4), random.whole(1, 9), random.whole(1, 5), three_wide ? 3 : random.whole(1, 5), few(1, 3),
                       three_wide ? 1 : few(1, 3), few(0, 3), few(0, 3), few(1, 3), three_wide ? 1 : few(1, 3),
                       random.whole(1, 5), random.whole(1, 5), random.whole(1, 5), random.whole(1, 5), 0, 0, random.chance(0.5)};
    if (random.chance(0.5)) g.pool_kernel_w = random.whole(2, 3), g.pool_stride_w = 2;
    g.pool_padding_h = few(0, g.pool_kernel_h / 2);
    g.pool_padding_w = few(0, g.pool_kernel_w / 2);
    Images images{g, random.whole(1, 3), random.whole(1, 24), random.whole(1, 80), " conv_pool"};
    std::vector<float> weight(size_t(g.in_channels * g.out_channels * g.kernel_h * g.kernel_w));
    try {
      ConvPool(g, weight.data(), nullptr, false, families::conv_pool.kernels()).shape(images.height, images.width, 1, 1);
    } catch (const std::invalid_argument&) {
      continue;
    }
    for (int64_t v : {g.in_channels, g.out_channels, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.padding_h, g.padding_w,
                      g.dilation_h, g.dilation_w, g.pool_kernel_h, g.pool_kernel_w, g.pool_stride_h, g.pool_stride_w,
                      g.pool_padding_h, g.pool_padding_w, int64_t(g.ceil_mode), images.batch, images.height, images.width})
      images.name += " " + std::to_string(v);
    return images;
  }
}

void try_conv_pool(Random& random, const std::string& where, bool with_mlp) {
  const Images images = random_images(random);
  const ConvPoolGeometry& g = images.geometry;
  const int64_t taps = g.in_channels * g.kernel_h * g.kernel_w, image_floats = g.in_channels * images.height * images.width;
  Guarded weight(g.out_channels * taps), bias(g.out_channels), x(images.batch * image_floats);
  fill(weight, random, std::sqrt(1 / double(taps)));
  fill(bias, random, 1);
  fill(x, random, 1);
  if (random.chance(0.4))
    for (int64_t i = random.whole(1, 4); i > 0; i--)
      x[random.whole(0, x.size() - 1)] = random.one_of<float>({NAN, -NAN, HUGE_VALF, -HUGE_VALF, 1e-42f, -0.0f, with_mlp ? 0 : 1e37f, with_mlp ? 0 : -1e30f});

  const float* const bias_data = random.chance(0.7) ? bias.data() : nullptr;
  const auto pack_conv = [&] { return std::make_unique<ConvPool>(g, weight.data(), bias_data, false, families::conv_pool.kernels()); };
  const ConvPoolShape shape = pack_conv()->shape(images.height, images.width, images.batch, 1);
  Chain chain;
  if (with_mlp) chain = random_chain(random, shape.out_width, 40);
  std::vector<Bounded> expected;
  for (int64_t n = 0; n < images.batch; n++) {
    const std::vector<Bounded> pooled = conv_pool(shape, weight.data(), bias_data, x.data() + n * image_floats);
    if (!with_mlp) append(expected, pooled);
    for (auto row = pooled.begin(); with_mlp && row != pooled.end(); row += shape.out_width) append(expected, mlp(chain.layers, {row, row + shape.out_width}));
  }
  auto inputs = addresses(chain);
  inputs.insert(inputs.end(), {&weight, &bias, &x});
  const int threads = int(random.whole(2, 4));
  const std::vector<int64_t> sizes = {images.batch, g.in_channels, images.height, images.width};
  const View pixels = view(x, sizes, sizes);
  if (!with_mlp) return check(expected, inputs, pixels, threads, where + images.name, pack_conv);
  std::unique_ptr<ConvPool> conv;
  std::unique_ptr<Mlp> then;
  check(expected, inputs, pixels, threads, where + images.name + " " + chain.name, [&] {
    conv = pack_conv();
    then = pack(chain);
    return std::make_unique<ConvPoolMlp>(*conv, *then);
  });
}

// Half of them such as Winograd's form takes.
ConvGeometry random_conv(Random& random) {
  const auto few = [&](int64_t least, int64_t most) { return random.chance(0.6) ? least : random.whole(least, most); };
  const bool is_3x3 = random.chance(0.5);
  const int64_t groups = is_3x3 ? 1 : random.one_of<int64_t>({1, 1, 2, 4}), size = random.one_of<int64_t>({1, 3, 4, 8, 17});
  const int64_t inputs = is_3x3 ? random.whole(16, 70) : groups * size, outputs = is_3x3 ? random.whole(16, 50) : random.chance(0.5) ? inputs : groups * random.whole(1, 40);
  return {inputs, outputs, groups, is_3x3 ? 3 : random.whole(1, 4), is_3x3 ? 3 : random.whole(1, 4), is_3x3 ? 1 : few(1, 3), is_3x3 ? 1 : few(1, 3),
          few(0, 3), few(0, 3), few(0, 3), few(0, 3), is_3x3 ? 1 : few(1, 3), is_3x3 ? 1 : few(1, 3)};
}

void try_conv(Random& random, const std::string& where) {
  ConvGeometry g{};
  int64_t height, width;
  do {
    g = random_conv(random);
    height = random.whole(1, 13);
    width = random.whole(1, 13);
  } while (height + g.padding_top + g.padding_bottom <= g.dilation_h * (g.kernel_h - 1) || width + g.padding_left + g.padding_right <= g.dilation_w * (g.kernel_w - 1));
  const int64_t batch = random.whole(0, 3), out_height = g.out_height(height), out_width = g.out_width(width);
  const bool is_last = random.chance(0.7);
  const int64_t pixel = g.in_channels + (is_last ? random.one_of<int64_t>({0, 0, 5}) : 0), pixels = batch * height * width;
  Guarded weight(g.out_channels * g.group_inputs() * g.kernel_h * g.kernel_w), bias(g.out_channels);
  Guarded x(pixels ? (pixels - 1) * pixel + g.in_channels : 0, NAN);  // NaN stays between the pixels
  const std::vector<int64_t> sizes = {batch, g.in_channels, height, width}, of_y = {batch, g.out_channels, out_height, out_width};
  const std::vector<int64_t> strides = is_last ? std::vector<int64_t>{height * width * pixel, 1, width * pixel, pixel}
                                               : std::vector<int64_t>{g.in_channels * height * width, height * width, width, 1};
  const std::vector<int64_t> y_strides = {out_height * out_width * g.out_channels, 1, out_width * g.out_channels, g.out_channels};
  const auto at = [&](int64_t n, int64_t c, int64_t i, int64_t j) { return n * strides[0] + c * strides[1] + i * strides[2] + j * strides[3]; };
  fill(weight, random, std::sqrt(1 / double(g.group_inputs() * g.kernel_h * g.kernel_w)));
  fill(bias, random, 1);
  for (int64_t n = 0; n < batch; n++)
    for (int64_t c = 0; c < g.in_channels; c++)
      for (int64_t i = 0; i < height * width; i++) x[at(n, c, i / width, i % width)] = random.normal(1);
  for (int64_t i = random.chance(0.4) && batch ? random.whole(1, 4) : 0; i > 0; i--)
    x[at(random.whole(0, batch - 1), random.whole(0, g.in_channels - 1), random.whole(0, height - 1), random.whole(0, width - 1))] =
        random.one_of<float>({NAN, -NAN, HUGE_VALF, -HUGE_VALF, 1e-42f, -0.0f, 1e30f});

  const float* const bias_data = random.chance(0.7) ? bias.data() : nullptr;
  std::vector<Bounded> expected;
  for (int64_t n = 0; n < batch; n++)
    for (int64_t p = 0; p < out_height * out_width; p++)
      for (int64_t o = 0; o < g.out_channels; o++)
        expected.push_back(convolution(g, weight.data(), bias_data, o, p / out_width, p % out_width, [&](int64_t c, int64_t i, int64_t j) -> double {
          return i < 0 || i >= height || j < 0 || j >= width ? 0 : x[at(n, c, i, j)];
        }));
  std::string name = " conv";
  for (int64_t v : {g.in_channels, g.out_channels, g.groups, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.padding_top, g.padding_left,
                    g.padding_bottom, g.padding_right, g.dilation_h, g.dilation_w, batch, height, width, int64_t(is_last)})
    name += " " + std::to_string(v);
  const View shape{nullptr, DType::f32, 4, of_y.data(), y_strides.data()};
  check(expected, {&weight, &bias, &x}, view(x, sizes, strides), int(random.whole(2, 4)), where + name,
        [&] { return std::make_unique<Conv>(g, weight.data(), bias_data, false, families::conv.kernels()); }, shape);
}

void try_elementwise(Random& random, const std::string& where) {
  if (const std::string wrong = try_pointwise(random, supported()); !wrong.empty()) fail(wrong, where + "pointwise");
  if (const std::string wrong = try_copy(random, supported()); !wrong.empty()) fail(wrong, where + "copy");
  if (const std::string wrong = try_rows(random, supported()); !wrong.empty()) fail(wrong, where + "rows");
  if (const std::string wrong = try_group_norm(random, supported()); !wrong.empty()) fail(wrong, where + "group norm");
}

// A chunk that throws, on whichever thread: the others are computed, the caller gets the exception, the pool goes on.
void try_exceptions() {
  for (int round = 0; round < 50; round++) {
    std::atomic<int> computed{0};
    OneThreadTime time;
    bool caught = false;
    try {
      Lease::hold(4, time, 1e9, [&](Lease& lease) {
        if (lease.threads() < 2) fail("no threads", "exceptions");
        lease.run(64, [&](int64_t chunk) {
          computed++;
          if (chunk % 9 == round % 9) throw std::bad_alloc();
        });
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    if (!caught || computed != 64) fail("caught " + std::to_string(caught) + " after " + std::to_string(computed) + " chunks of 64", "exceptions");
    Lease::hold(4, time, 1e9, [&](Lease& lease) { lease.run(64, [&](int64_t) { computed++; }); });
    if (computed != 128) fail("the pool computed " + std::to_string(computed - 64) + " chunks of 64", "exceptions");
  }
}

// Several callers at once: one has the pool, the others compute alone.
void try_callers(Random& random) {
  const Chain chain = random_chain(random, 50, 130);
  const std::unique_ptr<Mlp> op = pack(chain);
  Guarded x(40 * 50);
  fill(x, random, 1);
  const std::vector<int64_t> sizes = {40, 50}, strides = {50, 1};
  const View rows = view(x, sizes, strides);
  const int64_t floats = 40 * op->out_features();
  Guarded expected(floats);
  const View alone{expected.data(), DType::f32, 0, nullptr, nullptr};
  op->run(&rows, &alone, 1);
  std::atomic<bool> wrong{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; i++)
    callers.emplace_back([&] {
      for (int call = 0; call < 10; call++) {
        Guarded y(floats, kUnwritten);
        const View output{y.data(), DType::f32, 0, nullptr, nullptr};
        op->run(&rows, &output, 3);
        for (int64_t k = 0; k < floats; k++)
          if (!is_same(y[k], expected[k])) wrong = true;
        if (!y.untouched()) wrong = true;
      }
    });
  for (std::thread& caller : callers) caller.join();
  if (wrong) fail("other results", "callers at once" + chain.name);
}

}  // namespace
}  // namespace tests
}  // namespace fastgraph

int main(int argc, char** argv) {
  using namespace fastgraph::tests;
  if (argc != 3) return fprintf(stderr, "usage: sanitize SEED CASES\n"), 2;
  const uint64_t seed = strtoull(argv[1], nullptr, 10);
  const int cases = atoi(argv[2]);
  for (int i = 0; i < cases; i++) {
    Random random(seed + uint64_t(i));
    const std::string where = "seed " + std::to_string(seed + uint64_t(i)) + ": ";
    try_mlp(random, where);
    try_conv(random, where);
    try_conv_pool(random, where, false);
    try_conv_pool(random, where, true);
    for (int more = 0; more < 5; more++) try_elementwise(random, where);
    if (i % 20 == 0) try_callers(random);
  }
  try_exceptions();
  printf("%d cases of each op on", cases);
  for (const std::string& name : supported()) printf(" %s", name.c_str());
  printf(", scratch in %d threads\n", fastgraph::threads_with_scratch.load());
}
