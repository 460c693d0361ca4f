// What a call costs one thread, for the decision whether workers are woken for it.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <atomic>

namespace fastgraph {

// A kernel's own time on one thread over a rough estimate of it, by the class of the estimate (powers of two): measured on the first
// calls that run on the caller alone. Threads may use one at the same time; a measurement lost in that is made again.
class OneThreadTime {
 public:
  static constexpr int kCalls = 3;  // the first reads weights and code that no cache holds

  // Whether too few calls of this size have been measured.
  bool unknown(double estimate_ns) const { return at(estimate_ns).calls.load(std::memory_order_relaxed) < kCalls; }

  double ns(double estimate_ns) const { return estimate_ns * at(estimate_ns).ratio.load(std::memory_order_relaxed); }

  void measured(double estimate_ns, double ns) {
    Class& c = classes_[index(estimate_ns)];
    const float ratio = float(ns / std::max(estimate_ns, 1.0));
    const int calls = c.calls.load(std::memory_order_relaxed);
    c.ratio.store(calls == 0 ? ratio : std::min(ratio, c.ratio.load(std::memory_order_relaxed)), std::memory_order_relaxed);
    if (calls < kCalls) c.calls.store(calls + 1, std::memory_order_relaxed);
  }

 private:
  struct Class {
    std::atomic<int> calls{0};
    std::atomic<float> ratio{1};
  };
  static constexpr int kClasses = 32;
  static int index(double estimate_ns) {
    int i = 0;
    for (int64_t t = int64_t(estimate_ns); t > 1 && i < kClasses - 1; t /= 2) i++;
    return i;
  }
  const Class& at(double estimate_ns) const { return classes_[index(estimate_ns)]; }
  Class classes_[kClasses];
};

}  // namespace fastgraph
