#include "ceiling.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "families.h"

namespace fastgraph {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kIterations = 2000;  // between two looks at the clock: some microseconds
constexpr int64_t kSeedFloats = 16 * 16;

// Values that neither overflow nor become denormal, however often they are multiplied and added.
const float* seed() {
  static const auto values = [] {
    std::vector<float> made(kSeedFloats);
    for (size_t i = 0; i < made.size(); i++) made[i] = 1e-3f * float(i % 7 + 1);
    return made;
  }();
  return values.data();
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

double dot_against_fma(const CeilingKernels& kernels) {
  constexpr int kRounds = 20;
  double fma = 0, dot = 0;
  volatile float sink = 0;
  const auto rate = [&](float (*loop)(int64_t, const float*), int64_t flops) {
    const auto start = Clock::now();
    sink = sink + loop(kIterations, seed());
    return double(kIterations * flops) / seconds_since(start);
  };
  for (int round = 0; round < kRounds; round++) {
    fma = std::max(fma, rate(kernels.fma_f32, kernels.fma_flops));
    dot = std::max(dot, rate(kernels.dot_bf16, kernels.dot_flops));
  }
  return dot / fma;
}

Ceiling::Ceiling(int threads) : threads_(std::max(threads, 1)) {}

// work(thread, kept) does a piece and returns how much it was. All threads begin together; each counts by its median
// piece, so that a moment in which the system gives its core to somebody else does not lower the ceiling.
template <class Work>
double Ceiling::rate(double seconds, const Work& work) {
  std::atomic<int> waiting{threads_};
  std::atomic<float> sink{0};
  std::vector<double> rates(size_t(threads_), 0.0);
  const auto run = [&](int thread) {
    float kept = 0;
    std::vector<double> pieces;
    work(thread, &kept);  // once untimed: instructions and, where they fit, data come into the caches
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    const auto start = Clock::now();
    double amount = 0, now = 0;
    do {
      const double before = now;
      amount = work(thread, &kept);
      now = seconds_since(start);
      pieces.push_back(now - before);
    } while (now < seconds);
    const auto middle = pieces.begin() + std::ptrdiff_t(pieces.size() / 2);
    std::nth_element(pieces.begin(), middle, pieces.end());
    rates[size_t(thread)] = amount / *middle;
    sink.store(kept, std::memory_order_relaxed);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads_; thread++) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double one : rates) sum += one;
  return sum;
}

double Ceiling::fma_f32(double seconds) {
  const CeilingKernels& kernel = families::ceiling.kernels();
  return rate(seconds, [&](int, float* kept) {
    *kept += kernel.fma_f32(kIterations, seed());
    return double(kIterations * kernel.fma_flops);
  });
}

double Ceiling::dot_bf16(double seconds) {
  const CeilingKernels& kernel = families::ceiling.kernels();
  if (kernel.dot_bf16 == nullptr) return 0;
  return rate(seconds, [&](int, float* kept) {
    *kept += kernel.dot_bf16(kIterations, seed());
    return double(kIterations * kernel.dot_flops);
  });
}

double Ceiling::read(int64_t bytes, double seconds) {
  const int64_t step = kReadFloats * int64_t(sizeof(float));
  const int64_t floats = (std::max(bytes, step) + step - 1) / step * kReadFloats;
  grow(floats);
  const CeilingKernels& kernel = families::ceiling.kernels();
  return rate(seconds, [&](int thread, float* kept) {
    *kept += kernel.read(buffers_[size_t(thread)].get(), floats);
    return double(floats) * double(sizeof(float));
  });
}

// The buffers stay as large as the largest read so far, so that only the first one pays for the memory.
void Ceiling::grow(int64_t floats) {
  if (floats <= floats_) return;
  buffers_.clear();
  floats_ = 0;
  for (int thread = 0; thread < threads_; thread++) {
    buffers_.push_back(aligned_floats(floats, 4096));
    std::fill_n(buffers_.back().get(), floats, 1e-3f);
  }
  floats_ = floats;
}

}  // namespace fastgraph
