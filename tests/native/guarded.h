// Memory for the native tests: whatever is read or written outside of it shows.
#pragma once

#include <sanitizer/asan_interface.h>
#include <stdint.h>
#include <string.h>

#include <vector>

namespace fastgraph::tests {

// Floats between two guards of NaN: a result that used one is NaN, and one that was written to shows in untouched().
// Where AddressSanitizer is on it stops at either at once. Begins at a multiple of 4 bytes only, as a view may.
class Guarded {
 public:
  explicit Guarded(int64_t size, float fill = 0) : size_(size), memory_(size_t(size + 2 * kGuard)) {
    for (float& x : memory_) memcpy(&x, &kSentinel, sizeof(x));
    for (int64_t i = 0; i < size; i++) memory_[size_t(kGuard + i)] = fill;
    ASAN_POISON_MEMORY_REGION(memory_.data(), kGuard * sizeof(float));
    ASAN_POISON_MEMORY_REGION(memory_.data() + kGuard + size, kGuard * sizeof(float));
  }
  ~Guarded() { unpoison(); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  // Null where there are no floats, as an empty tensor's address.
  float* data() { return size_ ? memory_.data() + kGuard : nullptr; }
  float& operator[](int64_t i) { return memory_[size_t(kGuard + i)]; }
  int64_t size() const { return size_; }

  // Whether both guards are as they were. They are not guarded any more afterwards.
  bool untouched() {
    unpoison();
    for (int64_t i = 0; i < kGuard; i++)
      for (const float* guard : {&memory_[size_t(i)], &memory_[size_t(kGuard + size_ + i)]})
        if (memcmp(guard, &kSentinel, sizeof(float)) != 0) return false;
    return true;
  }

 private:
  static constexpr int64_t kGuard = 67;  // more than the longest vector of four registers; odd
  static constexpr uint32_t kSentinel = 0x7FC5A5A5;  // a NaN that no arithmetic gives

  void unpoison() { ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size() * sizeof(float)); }

  int64_t size_;
  std::vector<float> memory_;
};

}  // namespace fastgraph::tests
