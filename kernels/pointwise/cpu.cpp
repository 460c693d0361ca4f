// Pointwise on the CPU: checks, and the division of a call into tiles that stay in L1.
#include "cpu.h"

#include <string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/arena.h"

namespace fastgraph {
namespace {

constexpr int64_t kVector = 16;
constexpr int64_t kTile = 1024;       // values: 4 KB a register
constexpr int64_t kPassingTile = 8192;  // 64 x 56 x 56 values: 1.2 times as fast as with 1024 (Zen 5)
constexpr int64_t kLongRow = 128;
constexpr int64_t kChunkValues = 8192;  // at least, where there is more than one chunk
constexpr int64_t kMaxChunksPerThread = 4;

struct OpcodeTraits {
  int reads;
  double ns;  // of a value
};
constexpr OpcodeTraits kTraits[] = {
#define FASTGRAPH_TRAITS(name, reads, time, ...) {reads, (time) / 64.0},
    FASTGRAPH_POINTWISE(FASTGRAPH_TRAITS)
#undef FASTGRAPH_TRAITS
};
constexpr int kOpcodes = int(sizeof kTraits / sizeof *kTraits);

const OpcodeTraits& traits(const Instruction& instruction) { return kTraits[int(instruction.opcode)]; }

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("Pointwise: " + why); }

bool is_elementwise(int activation) {
  return activation > int(Activation::none) && activation <= int(Activation::softplus) && activation != int(Activation::softmax) &&
         activation != int(Activation::log_softmax);
}

double activation_ns(int activation) {
  switch (static_cast<Activation>(activation)) {
    case Activation::relu:
    case Activation::clamp:
    case Activation::leaky_relu: return 0.03;
    case Activation::hardswish:
    case Activation::hardsigmoid: return 0.06;
    case Activation::gelu:
    case Activation::mish:
    case Activation::softplus: return 0.5;
    default: return 0.3;
  }
}

int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Pointwise::Pointwise(std::vector<Instruction> program, int inputs, const std::vector<Constant>& constants, int axis, const PointwiseKernels& kernels)
    : program_(std::move(program)), inputs_(inputs), axis_(axis), constants_(constants), storage_(nullptr, free), kernels_(kernels) {
  check();
  for (const Constant& c : constants_) storage_floats_ += ceil_div(c.count, kVector) * kVector;
  storage_ = aligned_floats(storage_floats_);
  float* next = storage_.get();
  for (Constant& c : constants_) {
    std::copy(c.values, c.values + c.count, next);
    c.values = next;
    next += ceil_div(c.count, kVector) * kVector;
  }
  for (const Instruction& i : program_) ns_per_value_ += i.opcode == Opcode::activation ? activation_ns(i.reads[1]) : traits(i).ns;
  ns_per_value_ += 0.05 * (1 + operand_count());
  assign_buffers();
}

std::vector<std::string> Pointwise::opcodes() {
#define FASTGRAPH_NAME(name, ...) #name,
  return {FASTGRAPH_POINTWISE(FASTGRAPH_NAME)};
#undef FASTGRAPH_NAME
}

void Pointwise::check() const {
  if (inputs_ < 1 || inputs_ > kMaxInputs) refuse("inputs: needs 1 to 8, got " + std::to_string(inputs_));
  if (constants_.size() > size_t(kMaxConstants)) refuse("constants: needs at most 8, got " + std::to_string(constants_.size()));
  for (const Constant& c : constants_)
    if (c.count < 1) refuse("constants: needs at least one value each, got " + std::to_string(c.count));
  if (program_.empty()) refuse("program: needs at least one instruction, got none");
  for (size_t i = 0; i < program_.size(); i++) {
    const std::string here = "program[" + std::to_string(i) + "]: ";
    const int opcode = int(program_[i].opcode), registers = operand_count() + int(i);
    if (opcode < 0 || opcode >= kOpcodes) refuse(here + "needs an opcode below " + std::to_string(kOpcodes) + ", got " + std::to_string(opcode));
    for (int r = 0; r < kTraits[opcode].reads; r++)
      if (const int reads = program_[i].reads[size_t(r)]; reads < 0 || reads >= registers)
        refuse(here + "needs registers below " + std::to_string(registers) + ", got " + std::to_string(reads));
    if (program_[i].opcode == Opcode::activation && !is_elementwise(program_[i].reads[1]))
      refuse(here + "needs the number of an elementwise activation, got " + std::to_string(program_[i].reads[1]));
  }
}

// A buffer is free again after the last instruction that reads it; that one may write it.
void Pointwise::assign_buffers() {
  std::vector<int> last_use(program_.size(), -1), free;
  for (size_t i = 0; i < program_.size(); i++)
    for (int r = 0; r < traits(program_[i]).reads; r++)
      if (const int from = program_[i].reads[size_t(r)] - operand_count(); from >= 0) last_use[size_t(from)] = int(i);
  for (size_t i = 0; i < program_.size(); i++) {
    for (size_t from = 0; from < i; from++)
      if (last_use[from] == int(i) || (last_use[from] < 0 && from + 1 == i)) free.push_back(buffer_of_[from]);
    if (free.empty()) free.push_back(buffers_++);
    buffer_of_.push_back(free.back());
    free.pop_back();
  }
}

double Pointwise::estimate_ns(const View* inputs) const {
  int64_t sizes[kMaxRank] = {}, count = 1;
  int rank = 0;
  for (int i = 0; i < inputs_; i++) {
    for (int axis = 1; axis <= inputs[i].rank; axis++) {
      const int64_t size = inputs[i].sizes[inputs[i].rank - axis];
      int64_t& result = sizes[axis - 1];
      if (axis > rank || result == 1) result = size;
    }
    rank = std::max(rank, inputs[i].rank);
  }
  for (int axis = 0; axis < rank; axis++) count *= sizes[axis];
  return 50 + ns_per_value_ * double(count);
}

// The tiles of one call: the innermost axes whole, and part of one axis, `split`. A tile's values follow each other as the result's do.
class Pointwise::Tiles {
 public:
  Tiles(const Pointwise& op, const OperandLoops& loops) : op_(op), loops_(loops), split_(loops.rank - 1) {
    while (split_ > 0 && inner_ * loops.sizes[split_] < kTile / 2 && !makes_rows_of_one_value()) inner_ *= loops.sizes[split_--];
    for (int o = 0; o < loops.operands; o++) kinds_[o] = kind_of(o);
    const int64_t size = loops.sizes[split_], align = kVector / greatest_common_divisor(inner_, kVector);
    rows_ = std::min(size, (keeps_nothing() ? kPassingTile : kTile) / inner_);
    rows_ = ceil_div(size, ceil_div(size, rows_));  // equal parts, whole vectors
    if (rows_ >= align && rows_ < size) rows_ = rows_ / align * align;
    per_line_ = ceil_div(size, rows_);
    count_ = per_line_;
    for (int axis = 0; axis < split_; axis++) count_ *= loops.sizes[axis];
  }

  int64_t count() const { return count_; }
  int64_t values() const { return rows_ * inner_; }  // of one
  int64_t scratch_floats() const { return (op_.buffers_ + loops_.operands) * kTile; }

  // Computes tiles [first, last).
  void run(int64_t first, int64_t last, float* scratch) const {
    float* const copies = scratch + op_.buffers_ * kTile;  // one for each operand
    int64_t index[kMaxRank];
    int64_t part = start(first, index);
    const float* held[kMaxOperands] = {};  // what an operand's copy was made from
    int64_t held_rows = 0;
    for (int64_t tile = first; tile < last; tile++) {
      const int64_t begin = part * rows_, rows = std::min(rows_, loops_.sizes[split_] - begin);
      if (rows > held_rows) std::fill(held, held + kMaxOperands, nullptr);
      held_rows = std::max(held_rows, rows);
      run_tile(index, begin, rows, held, scratch, copies);
      if (++part == per_line_) part = advance(index);
    }
  }

 private:
  enum class Kind { in_order, same, other };  // of an operand's values in a tile

  // Whether tiles with more than one row would need to have an operand spread that is one value a row; short rows are better spread.
  bool makes_rows_of_one_value() const {
    if (inner_ * loops_.sizes[split_] < kLongRow) return false;
    for (int o = 1; o < loops_.operands; o++)
      if (loops_.strides[split_ - 1][o] != 0 && kind_of(o) == Kind::same) return true;
    return false;
  }

  // Whether values go from memory to memory, so that it does not matter what L1 holds.
  bool keeps_nothing() const {
    return op_.program_.size() == 1 && kinds_[0] == Kind::in_order && std::count(kinds_, kinds_ + loops_.operands, Kind::other) == 0;
  }

  Kind kind_of(int o) const {
    bool in_order = true, same = true;
    int64_t expected = 1;
    for (int axis = loops_.rank - 1; axis >= split_; axis--) {
      in_order = in_order && loops_.strides[axis][o] == expected;
      same = same && loops_.strides[axis][o] == 0;
      expected *= loops_.sizes[axis];
    }
    return in_order ? Kind::in_order : same ? Kind::same : Kind::other;
  }

  int64_t start(int64_t tile, int64_t* index) const {
    const int64_t part = tile % per_line_;
    tile /= per_line_;
    for (int axis = split_ - 1; axis >= 0; axis--) {
      index[axis] = tile % loops_.sizes[axis];
      tile /= loops_.sizes[axis];
    }
    return part;
  }

  int64_t advance(int64_t* index) const {
    for (int axis = split_ - 1; axis >= 0; axis--) {
      if (++index[axis] < loops_.sizes[axis]) break;
      index[axis] = 0;
    }
    return 0;
  }

  const float* address(int o, const int64_t* index, int64_t begin) const {
    const float* p = loops_.data[o] + begin * loops_.strides[split_][o];
    for (int axis = 0; axis < split_; axis++) p += index[axis] * loops_.strides[axis][o];
    return p;
  }

  // Whole vectors where they are, as far as they can be; what is left behind the last one in copies.
  void run_tile(const int64_t* index, int64_t begin, int64_t rows, const float** held, float* scratch, float* copies) const {
    const int64_t n = rows * inner_, whole = n / kVector * kVector;
    float* const result = const_cast<float*>(address(0, index, begin));
    const bool is_direct = kinds_[0] == Kind::in_order;
    Operand operands[kMaxOperands];
    for (int o = 1; o < loops_.operands; o++) operands[o] = operand(o, address(o, index, begin), rows, held[o], copies + o * kTile);
    if (whole > 0) run_program(operands, is_direct ? result : copies, whole, scratch);
    if (whole < n) {
      for (int o = 1; o < loops_.operands; o++) operands[o] = rest_of(o, operands[o], whole, n - whole, copies + o * kTile);
      float* const rest = is_direct ? copies : copies + whole;
      run_program(operands, rest, kVector, scratch);
      if (is_direct) std::copy(rest, rest + n - whole, result + whole);
    }
    if (!is_direct) scatter(copies, result, split_, rows);
  }

  void run_program(const Operand* operands, float* result, int64_t n, float* scratch) const {
    const int sources = op_.operand_count(), count = int(op_.program_.size());
    const auto buffer = [&](int i) { return scratch + op_.buffer_of_[size_t(i)] * kTile; };
    const auto at = [&](int r) { return r < sources ? operands[r + 1] : Operand{buffer(r - sources), -1}; };
    for (int i = 0; i < count; i++) {
      const Instruction& instruction = op_.program_[size_t(i)];
      const int reads = traits(instruction).reads;
      const Operand a = at(instruction.reads[0]), b = reads > 1 ? at(instruction.reads[1]) : a, c = reads > 2 ? at(instruction.reads[2]) : a;
      op_.kernels_.apply(instruction, a, b, c, i + 1 < count ? buffer(i) : result, n);
    }
  }

  // Where an operand's values of a tile can be read as vectors: where they are, or in its copy.
  Operand operand(int o, const float* from, int64_t rows, const float*& held, float* copy) const {
    if (kinds_[o] == Kind::in_order) return {from, -1};
    if (held != from) {
      if (kinds_[o] == Kind::same) std::fill(copy, copy + kVector, *from);
      else std::fill_n(gather(from, o, copy, split_, rows), -(rows * inner_) & (kVector - 1), 0.0f);
      held = from;
    }
    return {copy, kinds_[o] == Kind::same ? 0 : -1};
  }

  Operand rest_of(int o, Operand operand, int64_t whole, int64_t rest, float* copy) const {
    if (kinds_[o] == Kind::other) return {operand.values + whole, -1};
    if (kinds_[o] == Kind::same) return operand;
    std::fill(std::copy(operand.values + whole, operand.values + whole + rest, copy), copy + kVector, 0.0f);
    return {copy, -1};
  }

  float* gather(const float* from, int o, float* to, int axis, int64_t count) const {
    const int64_t stride = loops_.strides[axis][o];
    if (axis + 1 < loops_.rank) {
      for (int64_t i = 0; i < count; i++) to = gather(from + i * stride, o, to, axis + 1, loops_.sizes[axis + 1]);
    } else if (stride == 1 && count >= kVector) {
      memcpy(to, from, size_t(count) * sizeof(float));
      to += count;
    } else if (stride == 0) {
      std::fill(to, to + count, *from);
      to += count;
    } else {
      for (int64_t i = 0; i < count; i++) *to++ = from[i * stride];
    }
    return to;
  }

  const float* scatter(const float* from, float* to, int axis, int64_t count) const {
    const int64_t stride = loops_.strides[axis][0];
    if (axis + 1 < loops_.rank) {
      for (int64_t i = 0; i < count; i++) from = scatter(from, to + i * stride, axis + 1, loops_.sizes[axis + 1]);
    } else if (stride == 1 && count >= kVector) {
      memcpy(to, from, size_t(count) * sizeof(float));
      from += count;
    } else {
      for (int64_t i = 0; i < count; i++) to[i * stride] = *from++;
    }
    return from;
  }

  const Pointwise& op_;
  const OperandLoops& loops_;
  int split_;
  int64_t inner_ = 1;     // values of a row: of the axes behind `split`
  int64_t rows_;          // of a tile
  int64_t per_line_;      // tiles along `split`
  int64_t count_;
  Kind kinds_[kMaxOperands];
};

void Pointwise::run(const View* inputs, const View* outputs, Lease& lease) const {
  OperandLoops loops(outputs[0]);
  for (int i = 0; i < inputs_; i++) loops.add(inputs[i]);
  for (const Constant& c : constants_) loops.add(c.values, c.count, axis_ < 0 ? axis_ + loops.rank : axis_);
  if (loops.is_empty()) return;
  loops.collapse();
  const Tiles tiles(*this, loops);
  const int64_t most = lease.threads() == 1 ? 1 : lease.threads() * kMaxChunksPerThread;
  const int64_t chunks = std::max<int64_t>(1, std::min(most, tiles.count() * tiles.values() / kChunkValues)), each = ceil_div(tiles.count(), chunks);
  lease.run(ceil_div(tiles.count(), each), [&](int64_t c) {
    tiles.run(c * each, std::min((c + 1) * each, tiles.count()), thread_arena(tiles.scratch_floats()));
  });
}

}  // namespace fastgraph
