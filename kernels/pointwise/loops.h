// Loops over tensors of the same sizes with strides of their own: axes in the order of the first one's memory, and as few as can be.
#pragma once

#include <stdint.h>

#include "../cpu/kernel.h"

namespace fastgraph {

constexpr int kMaxRank = 8;

template <int kMax>
struct Loops {
  int rank = 0;
  int operands = 0;
  int64_t sizes[kMaxRank];
  int64_t strides[kMaxRank][kMax];  // 0 where an operand is broadcast
  const float* data[kMax];

  // Operand 0 decides the sizes.
  explicit Loops(const View& first) : rank(first.rank) {
    for (int i = 0; i < rank; i++) sizes[i] = first.sizes[i];
    add(first);
  }

  // Axes are aligned at the end.
  void add(const View& view) {
    const int missing = rank - view.rank;
    for (int i = 0; i < rank; i++) strides[i][operands] = i < missing || (view.sizes[i - missing] == 1 && sizes[i] != 1) ? 0 : view.strides[i - missing];
    data[operands++] = static_cast<const float*>(view.data);
  }

  // `count` values in order along one axis, or one.
  void add(const float* values, int64_t count, int axis) {
    for (int i = 0; i < rank; i++) strides[i][operands] = i == axis && count > 1;
    data[operands++] = values;
  }

  bool is_empty() const {
    for (int i = 0; i < rank; i++)
      if (sizes[i] == 0) return true;
    return false;
  }

  // At least one axis is left.
  void collapse() {
    drop_single();
    sort();
    merge();
    if (rank > 0) return;
    rank = 1;
    sizes[0] = 1;
    for (int o = 0; o < operands; o++) strides[0][o] = 1;
  }

 private:
  void move_axis(int from, int to) {
    sizes[to] = sizes[from];
    for (int o = 0; o < operands; o++) strides[to][o] = strides[from][o];
  }

  void drop_single() {
    int kept = 0;
    for (int i = 0; i < rank; i++)
      if (sizes[i] != 1) move_axis(i, kept++);
    rank = kept;
  }

  void swap_axes(int i, int j) {
    const auto swap = [](int64_t& a, int64_t& b) {
      const int64_t kept = a;
      a = b;
      b = kept;
    };
    swap(sizes[i], sizes[j]);
    for (int o = 0; o < operands; o++) swap(strides[i][o], strides[j][o]);
  }

  void sort() {
    for (int i = 1; i < rank; i++)
      for (int j = i; j > 0 && strides[j - 1][0] < strides[j][0]; j--) swap_axes(j - 1, j);
  }

  bool is_one_with_next(int outer, int inner) const {
    for (int o = 0; o < operands; o++)
      if (strides[outer][o] != strides[inner][o] * sizes[inner]) return false;
    return true;
  }

  void merge() {
    if (rank == 0) return;
    int last = 0;  // those up to here are done
    for (int i = 1; i < rank; i++) {
      if (is_one_with_next(last, i)) {
        const int64_t outer = sizes[last];
        move_axis(i, last);
        sizes[last] *= outer;
      } else {
        move_axis(i, ++last);
      }
    }
    rank = last + 1;
  }
};

}  // namespace fastgraph
