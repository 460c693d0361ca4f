// What every compiled op is to those who call it: the bindings, the guard and the plan (kernels/runtime).
#pragma once

#include <stdint.h>

#include "thread_pool.h"
#include "work.h"

namespace fastgraph {

enum class DType : int { f32, bf16 };

// A tensor's memory; strides in elements.
struct View {
  void* data;
  DType dtype;
  int rank;
  const int64_t* sizes;
  const int64_t* strides;

  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < rank; i++) count *= sizes[i];
    return count;
  }
};

// How values lie, where a kernel says that it takes more than contiguous ones. Channels last: of [N, C, W] or [N, C, H, W] the stride of C
// is 1, that of the last axis at least C (a part of a concatenation has more), and rows and images follow each other without gaps. Nothing
// between C and the next pixel is read or written.

// An op with its constants packed. Callers see to it that views have the ranks, sizes and data types that the op is defined
// for, with their values in order (contiguous) but where a kernel says otherwise. Results do not overlap inputs.
class Kernel {
 public:
  Kernel() = default;
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  virtual ~Kernel() = default;

  virtual int input_count() const { return 1; }

  // One thread's time, roughly.
  virtual double estimate_ns(const View* inputs) const = 0;

  virtual void run(const View* inputs, const View* outputs, Lease& lease) const = 0;

  // The same on at most so many threads.
  void run(const View* inputs, const View* outputs, int threads) const {
    Lease::hold(threads, time_, estimate_ns(inputs), [&](Lease& lease) { run(inputs, outputs, lease); });
  }

  virtual int64_t packed_bytes() const = 0;

 private:
  mutable OneThreadTime time_;
};

}  // namespace fastgraph
