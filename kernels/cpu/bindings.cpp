// The one boundary between Python and the kernels. Addresses come in as integers (tensor.data_ptr());
// kernels/*/op.py has checked shapes, dtypes and strides before. The GIL is released while kernels run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "../conv_pool/cpu.h"
#include "../mlp/cpu.h"
#include "activation.h"
#include "ceiling.h"
#include "isa.h"

namespace nb = nanobind;
using namespace fastgraph;
using namespace nb::literals;

namespace fastgraph {
void bind_door(nb::module_& m);       // door.cpp
void bind_structure(nb::module_& m);  // structure.cpp
}

namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;
using Address = uintptr_t;

const float* input(Address a) { return reinterpret_cast<const float*>(a); }
float* output(Address a) { return reinterpret_cast<float*>(a); }

// weight, bias or 0, out_features, in_features, activations as numbers (enum Activation)
using LayerTuple = std::tuple<Address, Address, int64_t, int64_t, std::vector<int>>;

void make_mlp(Mlp* self, const std::vector<LayerTuple>& layers, bool bf16) {
  std::vector<Mlp::Source> sources;
  for (const auto& [weight, bias, out_features, in_features, numbers] : layers) {
    std::vector<Activation> activations;
    for (int n : numbers) activations.push_back(static_cast<Activation>(n));
    sources.push_back({input(weight), input(bias), out_features, in_features, activations});
  }
  new (self) Mlp(sources, bf16);
}

// conv_pool's sizes in the order of ConvPoolGeometry
void make_conv_pool(ConvPool* self, Address weight, Address bias, const std::vector<int64_t>& v, bool ceil_mode, bool bf16) {
  if (v.size() != 16) throw std::invalid_argument("geometry: needs 16 sizes");
  const ConvPoolGeometry geometry{v[0], v[1], v[2],  v[3],  v[4],  v[5],  v[6],  v[7],     v[8],
                                  v[9], v[10], v[11], v[12], v[13], v[14], v[15], ceil_mode};
  new (self) ConvPool(geometry, input(weight), input(bias), bf16);
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
    for (int i = 0; i < kIsaCount; i++)
      if (kIsas[i]->supported()) names.push_back(kIsas[i]->name);
    return names;
  }, "Names of the instruction sets that this machine supports, best first.");
  m.def("all_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kIsaCount; i++) names.push_back(kIsas[i]->name);
    return names;
  }, "Names of all instruction sets that the kernels were built for, best first.");
  m.def("isa", [] { return std::string(isa().name); }, "Name of the instruction set in use.");
  m.def("select_isa", [](const std::string& name) { return select_isa(name.c_str()); }, "name"_a,
        "Uses that instruction set from now on; False where it cannot be had.");

  m.def("unchanged", &unchanged, "tensors"_a, "seen"_a);

  nb::class_<Mlp>(m, "Mlp")
      .def("__init__", &make_mlp, "layers"_a, "bf16"_a)
      .def("run", [](const Mlp& self, Address x, int64_t ldx, int64_t rows, Address y, int threads) { self.run(input(x), ldx, rows, output(y), threads); }, Release())
      .def("run_bf16", [](const Mlp& self, Address x, int64_t ldx, int64_t rows, Address y, int threads) {
        self.run_bf16(reinterpret_cast<const uint16_t*>(x), ldx, rows, reinterpret_cast<uint16_t*>(y), threads); }, Release())
      .def_prop_ro("packed_bytes", &Mlp::packed_bytes);

  nb::class_<ConvPool>(m, "ConvPool")
      .def("__init__", &make_conv_pool, "weight"_a, "bias"_a, "geometry"_a, "ceil_mode"_a, "bf16"_a)
      .def("run", [](const ConvPool& self, Address x, int64_t batch, int64_t height, int64_t width, Address y, int threads) {
        self.run(input(x), batch, height, width, output(y), threads); }, Release())
      .def("run_mlp", [](const ConvPool& self, const Mlp& mlp, Address x, int64_t batch, int64_t height, int64_t width, Address y, int threads) {
        self.run_mlp(mlp, input(x), batch, height, width, output(y), threads); }, Release())
      .def_prop_ro("packed_bytes", &ConvPool::packed_bytes);

  bind_structure(m);
  bind_door(m);
  nb::class_<Ceiling>(m, "Ceiling")
      .def(nb::init<int>(), "threads"_a)
      .def("fma_f32", &Ceiling::fma_f32, "seconds"_a, Release())
      .def("dot_bf16", &Ceiling::dot_bf16, "seconds"_a, Release())
      .def("read", &Ceiling::read, "bytes"_a, "seconds"_a, Release());
}
