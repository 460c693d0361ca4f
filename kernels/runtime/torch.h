// What native code uses of torch: tensors are looked at through DLPack, all else are calls of Python objects. No torch headers.
#pragma once

#include <nanobind/nanobind.h>

#include "../cpu/kernel.h"
#include "dlpack.h"

namespace fastgraph {

// torch's table, or null where this torch has none of the version that dlpack.h describes.
inline const dlpack::ExchangeApi* exchange_api() {
  const nanobind::object capsule = nanobind::getattr(nanobind::module_::import_("torch").attr("Tensor"), "__dlpack_c_exchange_api__", nanobind::none());
  if (capsule.is_none()) return nullptr;
  auto api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) nanobind::raise_python_error();
  while (api != nullptr && api->major_version != dlpack::kMajorVersion) api = api->previous;
  return api != nullptr && api->look != nullptr ? api : nullptr;
}

inline nanobind::object checked(PyObject* result) {
  if (result == nullptr) nanobind::raise_python_error();
  return nanobind::steal(result);
}

inline bool is_true(const nanobind::object& value) {
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth < 0) nanobind::raise_python_error();
  return truth;
}

inline nanobind::object call(const nanobind::object& function) { return checked(PyObject_CallNoArgs(function.ptr())); }

inline nanobind::object interned(const char* name) { return checked(PyUnicode_InternFromString(name)); }

// What is used of torch.
struct Torch {
  const dlpack::ExchangeApi* api = exchange_api();
  nanobind::object module = nanobind::module_::import_("torch");
  nanobind::object tensor = module.attr("Tensor");
  nanobind::object parameter = module.attr("nn").attr("Parameter");
  nanobind::object new_empty = tensor.attr("new_empty");
  nanobind::object is_neg = tensor.attr("is_neg");
  nanobind::object is_grad_enabled = module.attr("is_grad_enabled");
  nanobind::object get_num_threads = module.attr("get_num_threads");
  nanobind::object functions_disabled = module.attr("_C").attr("DisableTorchFunction");
  nanobind::dict forward_ad = nanobind::module_::import_("torch.autograd.forward_ad").attr("__dict__");
  nanobind::object current_level = interned("_current_level");
  nanobind::object enter = interned("__enter__");
  nanobind::object exit = interned("__exit__");
  nanobind::object version = interned("_version");
  nanobind::object requires_grad = interned("requires_grad");

  // False where this is no tensor of torch's own types, or has no memory to look at (sparse, wrapped by a transform).
  bool look(PyObject* object, dlpack::Tensor& out) const {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor.ptr() && type != parameter.ptr()) return false;
    if (api->look(object, &out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  bool wants_grad(PyObject* object) const { return is_true(checked(PyObject_GetAttr(object, requires_grad.ptr()))); }

  // Whether inputs may carry tangents. Torch has no function to ask; its forward_ad keeps the number of levels less one.
  bool has_dual_level() const {
    PyObject* const level = PyDict_GetItemWithError(forward_ad.ptr(), current_level.ptr());
    return level == nullptr || PyLong_AsLong(level) >= 0;
  }
};

// The memory of a tensor that was looked at; false where kernels know no such data type.
inline bool view_of(const dlpack::Tensor& x, View& view) {
  constexpr int kFloat = 2, kBfloat = 4;
  const bool f32 = x.dtype.code == kFloat && x.dtype.bits == 32, bf16 = x.dtype.code == kBfloat && x.dtype.bits == 16;
  view = {x.data, f32 ? DType::f32 : DType::bf16, x.rank, x.shape, x.strides};
  return (f32 || bf16) && x.dtype.lanes == 1;
}

}  // namespace fastgraph
