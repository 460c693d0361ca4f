// The one boundary between Python and the kernels. Weights come in as addresses (tensor.data_ptr()); kernels/*/op.py has checked
// shapes, dtypes and strides before. The GIL is released while kernels run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "../conv/cpu.h"
#include "../conv_pool_mlp/cpu.h"
#include "../copy/cpu.h"
#include "../cpu/activation.h"
#include "../norm/cpu.h"
#include "../pointwise/cpu.h"
#include "../reduce/cpu.h"
#include "ceiling.h"
#include "families.h"
#include "features.h"
#include "plan.h"
#include "torch.h"

namespace nb = nanobind;
using namespace fastgraph;
using namespace nb::literals;

namespace fastgraph {
void bind_guard(nb::module_& m);      // guard.cpp
void bind_structure(nb::module_& m);  // structure.cpp
}

namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;
using Address = uintptr_t;

const float* input(Address a) { return reinterpret_cast<const float*>(a); }

// weight, bias or 0, out_features, in_features, activations as numbers (enum Activation)
using LayerTuple = std::tuple<Address, Address, int64_t, int64_t, std::vector<int>>;

void make_mlp(Mlp* self, const std::vector<LayerTuple>& layers, bool bf16) {
  std::vector<Mlp::Source> sources;
  for (const auto& [weight, bias, out_features, in_features, numbers] : layers) {
    std::vector<Activation> activations;
    for (int n : numbers) activations.push_back(static_cast<Activation>(n));
    sources.push_back({input(weight), input(bias), out_features, in_features, activations});
  }
  new (self) Mlp(sources, (bf16 ? families::gemm_bf16 : families::gemm_f32).kernels(), families::elementwise.kernels());
}

// conv_pool's sizes in the order of ConvPoolGeometry
void make_conv_pool(ConvPool* self, Address weight, Address bias, const std::vector<int64_t>& v, bool ceil_mode, bool bf16) {
  if (v.size() != 16) throw std::invalid_argument("geometry: needs 16 sizes");
  const ConvPoolGeometry geometry{v[0], v[1], v[2],  v[3],  v[4],  v[5],  v[6],  v[7],     v[8],
                                  v[9], v[10], v[11], v[12], v[13], v[14], v[15], ceil_mode};
  new (self) ConvPool(geometry, input(weight), input(bias), bf16, families::conv_pool.kernels());
}

// conv's sizes in the order of ConvGeometry
void make_conv(Conv* self, Address weight, Address bias, const std::vector<int64_t>& v, bool bf16) {
  if (v.size() != 13) throw std::invalid_argument("geometry: needs 13 sizes");
  const ConvGeometry geometry{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12]};
  new (self) Conv(geometry, reinterpret_cast<const void*>(weight), input(bias), bf16, families::conv.kernels());
}

// kind, a, b (enum Activation)
using ActivationTuple = std::tuple<int, float, float>;

std::vector<ActivationCall> activation_calls(const std::vector<ActivationTuple>& tuples) {
  std::vector<ActivationCall> calls;
  for (const auto& [kind, a, b] : tuples) calls.push_back({static_cast<Activation>(kind), a, b});
  return calls;
}

void make_conv_with(ConvWith* self, const Conv& conv, bool residual, const std::vector<ActivationTuple>& activations) {
  new (self) ConvWith(conv, residual, activation_calls(activations));
}

// in_channels, out_channels, groups, then kernel, stride, padding, output_padding, dilation, height first
void make_conv_transpose(ConvTranspose* self, Address weight, Address bias, const std::vector<int64_t>& v) {
  if (v.size() != 13) throw std::invalid_argument("geometry: needs 13 sizes");
  const bool is_plain = v[2] == 1 && v[3] == v[5] && v[4] == v[6] && v[7] == 0 && v[8] == 0 && v[9] == 0 && v[10] == 0 && v[11] == 1 && v[12] == 1;
  if (!is_plain) throw std::invalid_argument("conv_transpose: needs a kernel as large as the stride, without padding, dilation or groups");
  new (self) ConvTranspose(v[0], v[1], v[3], v[4], input(weight), input(bias), families::gemm_f32.kernels(), families::conv_transpose.kernels());
}

void make_conv_transpose_with(ConvTransposeWith* self, const ConvTranspose& conv, bool residual, const std::vector<ActivationTuple>& activations) {
  new (self) ConvTransposeWith(conv, residual, activation_calls(activations));
}

// in_channels, out_channels, groups, then the sizes in the order of Window
void make_depthwise(Depthwise* self, Address weight, Address bias, const std::vector<int64_t>& v) {
  if (v.size() != 13) throw std::invalid_argument("geometry: needs 13 sizes");
  if (v[2] != v[0]) throw std::invalid_argument("geometry: groups has to be in_channels");
  const Window window{v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12]};
  new (self) Depthwise({v[0], v[1], window}, input(weight), input(bias), families::depthwise.kernels());
}

void make_depthwise_with(DepthwiseWith* self, const Depthwise& depthwise, bool residual, const std::vector<ActivationTuple>& activations) {
  new (self) DepthwiseWith(depthwise, residual, activation_calls(activations));
}

using Pair = std::tuple<int64_t, int64_t>;  // height, width

void make_pool(Pool* self, int kind, Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode, bool count_include_pad, int64_t divisor) {
  const auto [kernel_h, kernel_w] = kernel;
  const auto [stride_h, stride_w] = stride;
  const auto [padding_h, padding_w] = padding;
  const auto [dilation_h, dilation_w] = dilation;
  const Window window{kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, padding_h, padding_w, dilation_h, dilation_w};
  new (self) Pool({static_cast<PoolKind>(kind), window, ceil_mode, count_include_pad, divisor}, families::pool.kernels());
}

void make_adaptive_pool(AdaptivePool* self, int kind, Pair out) {
  new (self) AdaptivePool(static_cast<PoolKind>(kind), std::get<0>(out), std::get<1>(out), families::pool.kernels());
}

void make_upsample(Upsample* self, int mode, bool align_corners, float height_scale, float width_scale) {
  new (self) Upsample({static_cast<UpsampleMode>(mode), align_corners, height_scale, width_scale}, families::upsample.kernels());
}

void make_layer_norm(LayerNorm* self, int64_t size, Address weight, Address bias, double eps) {
  new (self) LayerNorm(size, input(weight), input(bias), eps, families::norm.kernels());
}

void make_rms_norm(RmsNorm* self, int64_t size, Address weight, double eps) { new (self) RmsNorm(size, input(weight), eps, families::norm.kernels()); }

void make_group_norm(GroupNorm* self, int64_t groups, int64_t channels, Address weight, Address bias, double eps) {
  new (self) GroupNorm(groups, channels, input(weight), input(bias), eps, families::norm.kernels());
}

void make_reduce(Reduce* self, int kind, int axes) { new (self) Reduce(kind, axes, families::reduce.kernels()); }
void make_softmax(Softmax* self, bool is_log) { new (self) Softmax(is_log, families::reduce.kernels()); }

// opcode, three registers, two numbers
using InstructionTuple = std::tuple<int, int, int, int, float, float>;

void make_pointwise(Pointwise* self, const std::vector<InstructionTuple>& program, int inputs, const std::vector<std::tuple<Address, int64_t>>& constants,
                    int axis_of_constants) {
  std::vector<Instruction> instructions;
  for (const auto& [opcode, a, b, c, p, q] : program) instructions.push_back({static_cast<Opcode>(opcode), {a, b, c}, p, q});
  std::vector<Pointwise::Constant> values;
  for (const auto& [address, count] : constants) values.push_back({input(address), count});
  new (self) Pointwise(instructions, inputs, values, axis_of_constants, families::pointwise.kernels());
}

std::vector<View> views(nb::list tensors) {
  static const Torch& torch = *new Torch;  // lives as long as the process
  std::vector<View> all(nb::len(tensors));
  size_t i = 0;
  for (nb::handle tensor : tensors) {
    dlpack::Tensor memory;
    if (torch.api == nullptr || torch.api->look(tensor.ptr(), &memory) != 0 || !view_of(memory, all[i++]))
      throw std::invalid_argument("run: needs fp32 or bf16 tensors in the CPU's memory");
  }
  return all;
}

// The kernel on tensors, which have to be such as it takes; its results are written to `outputs`.
void run(const Kernel& kernel, nb::list inputs, nb::list outputs, int threads) {
  const std::vector<View> from = views(inputs), to = views(outputs);
  const nb::gil_scoped_release release;
  kernel.run(from.data(), to.data(), threads);
}

// sizes, strides, memory, offset, constant or 0: as in Plan::Slot
using SlotTuple = std::tuple<std::vector<int64_t>, std::vector<int64_t>, int, int64_t, Address>;
// (kernel, slots of its inputs, slots of its results)
using StepTuple = std::tuple<const Kernel*, std::vector<int>, std::vector<int>>;

void admit(Plan& plan, const std::vector<SlotTuple>& slots, const std::vector<int>& inputs, const std::vector<int>& outputs,
           const std::vector<StepTuple>& steps) {
  Plan::Program program;
  for (const auto& [sizes, strides, memory, offset, constant] : slots) program.slots.push_back({sizes, strides, memory, offset, input(constant)});
  for (const auto& [kernel, from, to] : steps) program.steps.push_back({kernel, from, to});
  program.inputs = inputs;
  program.outputs = outputs;
  plan.admit(std::move(program));
}

// Whether tensors are those that were seen (id, address, version), unchanged; a version of -1 is not looked at. Done in
// every call (kernels/weights.py): 1.3 us for six tensors, against 2.8 us in Python.
bool unchanged(nb::list tensors, nb::list seen) {
  static PyObject* const version_name = PyUnicode_InternFromString("_version");
  static PyObject* const address_name = PyUnicode_InternFromString("data_ptr");
  const size_t count = nb::len(tensors);
  if (count != nb::len(seen)) return false;
  for (size_t i = 0; i < count; i++) {
    PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), Py_ssize_t(i));
    const nb::tuple record = nb::cast<nb::tuple>(seen[i]);
    if (tensor != PyLong_AsVoidPtr(record[0].ptr())) return false;
    const nb::object address = nb::steal(PyObject_CallMethodNoArgs(tensor, address_name));
    if (!address.is_valid()) nb::raise_python_error();
    if (!address.equal(record[1])) return false;
    if (PyLong_AsLongLong(record[2].ptr()) < 0) continue;
    const nb::object version = nb::steal(PyObject_GetAttr(tensor, version_name));
    if (!version.is_valid()) nb::raise_python_error();
    if (!version.equal(record[2])) return false;
  }
  return true;
}

}  // namespace

NB_MODULE(_native, m) {
  // A result that is alive at exit with gradients holds packed weights: no leak, and no lines on standard error.
  nb::set_leak_warnings(false);
  m.doc() = "fastgraph's CPU kernels";

  m.def("isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kCapabilityCount; i++)
      if (kCapabilities[i].is_supported()) names.push_back(kCapabilities[i].name);
    return names;
  }, "Names of the capabilities that this machine supports, best first.");
  m.def("all_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kCapabilityCount; i++) names.push_back(kCapabilities[i].name);
    return names;
  }, "Names of all capabilities that the kernels were built for, best first.");
  m.def("isa", [] { return std::string(capability().name); }, "Name of the capability in use.");
  m.def("select_isa", [](const std::string& name) { return select_capability(name.c_str()); }, "name"_a,
        "What is packed from now on is packed for that capability; False where it cannot be had.");
  m.def("features", [] {
    nb::dict found;
    for (int i = 0; i < kFeatureCount; i++) found[kFeatureNames[i].name] = (features() & kFeatureNames[i].bit) != 0;
    return found;
  }, "Which instruction set extensions this processor has and its operating system lets be used.");
  m.def("families", [] {
    std::vector<std::tuple<std::string, std::string, double>> all;
    for (const FamilyChoice& one : family_choices()) all.emplace_back(one.family, one.row, one.gain);
    return all;
  }, "(family, row in use, measured speed of the best row against the next, or 0 where nothing had to be measured) of each.");

  m.def("unchanged", &unchanged, "tensors"_a, "seen"_a);

  nb::class_<Kernel>(m, "Kernel", "An op with its constants packed.")
      .def("run", &run, "inputs"_a, "outputs"_a, "threads"_a)
      .def_prop_ro("packed_bytes", &Kernel::packed_bytes);
  nb::class_<Mlp, Kernel>(m, "Mlp").def("__init__", &make_mlp, "layers"_a, "bf16"_a);
  nb::class_<Conv, Kernel>(m, "Conv", "A convolution, channels last; see kernels/conv/cpu.h.")
      .def("__init__", &make_conv, "weight"_a, "bias"_a, "geometry"_a, "bf16"_a);
  nb::class_<ConvWith, Kernel>(m, "ConvWith", "The same with a residual and activations behind it.")
      .def("__init__", &make_conv_with, "conv"_a, "residual"_a, "activations"_a, nb::keep_alive<1, 2>());
  nb::class_<ConvPool, Kernel>(m, "ConvPool").def("__init__", &make_conv_pool, "weight"_a, "bias"_a, "geometry"_a, "ceil_mode"_a, "bf16"_a);
  nb::class_<ConvPoolMlp, Kernel>(m, "ConvPoolMlp")
      .def(nb::init<const ConvPool&, const Mlp&>(), "conv_pool"_a, "mlp"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>());
  nb::class_<Copy, Kernel>(m, "Copy").def(nb::init<>());
  nb::class_<GroupNorm, Kernel>(m, "GroupNorm").def("__init__", &make_group_norm, "groups"_a, "channels"_a, "weight"_a, "bias"_a, "eps"_a);
  nb::class_<LayerNorm, Kernel>(m, "LayerNorm").def("__init__", &make_layer_norm, "size"_a, "weight"_a, "bias"_a, "eps"_a);
  nb::class_<RmsNorm, LayerNorm>(m, "RmsNorm").def("__init__", &make_rms_norm, "size"_a, "weight"_a, "eps"_a);
  nb::class_<Pointwise, Kernel>(m, "Pointwise")
      .def("__init__", &make_pointwise, "program"_a, "inputs"_a, "constants"_a = nb::list(), "axis_of_constants"_a = -1)
      .def_static("opcodes", &Pointwise::opcodes, "Names of the operations, in the order of their numbers.");
  nb::class_<Reduce, Kernel>(m, "Reduce", "Over the last axes: 0 sum, 1 mean, 2 largest, 3 smallest.").def("__init__", &make_reduce, "kind"_a, "axes"_a);
  nb::class_<Softmax, Kernel>(m, "Softmax").def("__init__", &make_softmax, "log"_a);
  nb::class_<Plan, Kernel>(m, "Plan", "Programs of kernels, one for each shape of the inputs; see kernels/runtime/plan.h.")
      .def(nb::init<int>(), "inputs"_a)
      .def("admit", &admit, "slots"_a, "inputs"_a, "outputs"_a, "steps"_a, nb::keep_alive<1, 5>())
      .def("arena_bytes", [](const Plan& self, nb::list inputs) { return self.arena_bytes(views(inputs).data()); }, "inputs"_a);

  nb::class_<ConvTranspose, Kernel>(m, "ConvTranspose").def("__init__", &make_conv_transpose, "weight"_a, "bias"_a, "geometry"_a);
  nb::class_<ConvTransposeWith, Kernel>(m, "ConvTransposeWith")
      .def("__init__", &make_conv_transpose_with, "conv_transpose"_a, "residual"_a, "activations"_a, nb::keep_alive<1, 2>());
  nb::class_<Depthwise, Kernel>(m, "Depthwise").def("__init__", &make_depthwise, "weight"_a, "bias"_a, "geometry"_a);
  nb::class_<DepthwiseWith, Kernel>(m, "DepthwiseWith")
      .def("__init__", &make_depthwise_with, "depthwise"_a, "residual"_a, "activations"_a, nb::keep_alive<1, 2>());
  nb::class_<Pool, Kernel>(m, "Pool").def("__init__", &make_pool, "kind"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil_mode"_a,
                                          "count_include_pad"_a, "divisor_override"_a);
  nb::class_<AdaptivePool, Kernel>(m, "AdaptivePool").def("__init__", &make_adaptive_pool, "kind"_a, "out"_a);
  nb::class_<Upsample, Kernel>(m, "Upsample")
      .def("__init__", &make_upsample, "mode"_a, "align_corners"_a, "height_scale"_a, "width_scale"_a);

  bind_structure(m);
  bind_guard(m);
  nb::class_<Ceiling>(m, "Ceiling")
      .def(nb::init<int>(), "threads"_a)
      .def("fma_f32", &Ceiling::fma_f32, "seconds"_a, Release())
      .def("dot_bf16", &Ceiling::dot_bf16, "seconds"_a, Release())
      .def("read", &Ceiling::read, "bytes"_a, "seconds"_a, Release());
}
