// The native half of kernels/door.py: everything that a call of one fused op does, in one step out of Python, and all
// that a call of several asks before them.
//
// A call between two runs of a kernel finds little of Python left in the cache (the weights of DeepLearningModel
// are twice the L2), so what counts is how much is touched. Of the 5.5 us that a call of its door takes above the
// kernel, measured on a Zen 5 at batch 1: the result's allocation 2.3, the watchers 1.2, the six parameters 1.4.
// Tried: the C functions behind _version and data_ptr without the attribute look-up, 0.2 less; torch.empty for
// new_empty, the same. Tensors are looked at through DLPack, all else are calls of Python objects: no torch headers.
#include <nanobind/nanobind.h>

#include <array>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <vector>

#include "../conv_pool/cpu.h"
#include "../mlp/cpu.h"
#include "dlpack.h"
#include "gc.h"
#include "structure.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastgraph {
namespace {

constexpr size_t kMaxForms = 4096;
constexpr int kMaxRank = 4;

// Data type, rank and sizes of an input, and for a gate that minds them its strides.
using Form = std::array<int64_t, 2 + 2 * kMaxRank>;

// torch's table, or null where this torch has none of the version that dlpack.h describes.
const dlpack::ExchangeApi* exchange_api() {
  const nb::object capsule = nb::getattr(nb::module_::import_("torch").attr("Tensor"), "__dlpack_c_exchange_api__", nb::none());
  if (capsule.is_none()) return nullptr;
  auto api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) nb::raise_python_error();
  while (api != nullptr && api->major_version != dlpack::kMajorVersion) api = api->previous;
  return api != nullptr && api->look != nullptr ? api : nullptr;
}

nb::object checked(PyObject* result) {
  if (result == nullptr) nb::raise_python_error();
  return nb::steal(result);
}

bool is_true(const nb::object& value) {
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth < 0) nb::raise_python_error();
  return truth;
}

nb::object call(const nb::object& function) { return checked(PyObject_CallNoArgs(function.ptr())); }

nb::object interned(const char* name) { return checked(PyUnicode_InternFromString(name)); }

// What is used of torch.
struct Torch {
  const dlpack::ExchangeApi* api = exchange_api();
  nb::object module = nb::module_::import_("torch");
  nb::object tensor = module.attr("Tensor");
  nb::object parameter = module.attr("nn").attr("Parameter");
  nb::object new_empty = tensor.attr("new_empty");
  nb::object is_neg = tensor.attr("is_neg");
  nb::object is_grad_enabled = module.attr("is_grad_enabled");
  nb::object get_num_threads = module.attr("get_num_threads");
  nb::object functions_disabled = module.attr("_C").attr("DisableTorchFunction");
  nb::dict forward_ad = nb::module_::import_("torch.autograd.forward_ad").attr("__dict__");
  nb::object current_level = interned("_current_level");
  nb::object enter = interned("__enter__");
  nb::object exit = interned("__exit__");
  nb::object version = interned("_version");
  nb::object requires_grad = interned("requires_grad");

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

// Looks at tensors, and results, do not go to the modes on torch's stack of functions: each would take its Python code.
class WithoutModes {
 public:
  explicit WithoutModes(const Torch& torch) : torch_(torch), guard_(call(torch.functions_disabled)) {
    checked(PyObject_CallMethodNoArgs(guard_.ptr(), torch_.enter.ptr()));
  }
  WithoutModes(const WithoutModes&) = delete;
  ~WithoutModes() {
    PyObject* const done = PyObject_CallMethodObjArgs(guard_.ptr(), torch_.exit.ptr(), Py_None, Py_None, Py_None, nullptr);
    if (done == nullptr) PyErr_WriteUnraisable(guard_.ptr());
    Py_XDECREF(done);
  }

 private:
  const Torch& torch_;
  nb::object guard_;
};

// Where a tensor is kept, and what it was when its values were packed; a version of -1 is not looked at.
struct Watched {
  nb::dict owner;
  nb::object name;
  uintptr_t object, address;
  int64_t version;

  PyObject* tensor() const { return PyDict_GetItemWithError(owner.ptr(), name.ptr()); }

  bool is_unchanged(const Torch& torch) const {
    PyObject* now = tensor();
    dlpack::Tensor memory;
    if (uintptr_t(now) != object || !torch.look(now, memory) || uintptr_t(memory.data) != address) return false;
    return version < 0 || PyLong_AsLongLong(checked(PyObject_GetAttr(now, torch.version.ptr())).ptr()) == version;
  }
};

bool is_contiguous(const dlpack::Tensor& x) {
  int64_t expected = 1;
  for (int i = x.rank - 1; i >= 0; i--) {
    if (x.shape[i] != 1 && x.strides[i] != expected) return false;
    expected *= x.shape[i];
  }
  return true;
}

// False where there are too many sizes.
bool form_of(const dlpack::Tensor& x, Form& form, bool strides = false) {
  if (x.rank > kMaxRank) return false;
  form = {int64_t(x.dtype.code) << 32 | x.dtype.bits << 16 | x.dtype.lanes, x.rank};
  for (int i = 0; i < x.rank; i++) {
    form[2 + i] = x.shape[i];
    if (strides) form[2 + kMaxRank + i] = x.strides[i];
  }
  return true;
}

// What has to hold in a call for packed weights, or whatever else was computed from parameters, to be used as they are.
class Watch {
 public:
  Watch(nb::list watchers, nb::list watched, nb::object structure)
      : structure_(nb::cast<const Structure*>(structure)), structure_object_(structure) {
    if (torch_.api == nullptr) throw std::runtime_error("Door: needs torch.Tensor.__dlpack_c_exchange_api__ of version 1");
    for (nb::handle entry : watchers) {
      const auto watcher = nb::cast<nb::tuple>(entry);
      watchers_.push_back({watcher[0], watcher[1]});
    }
    for (nb::handle entry : watched) {
      const auto record = nb::cast<nb::tuple>(entry);
      watched_.push_back({nb::cast<nb::dict>(record[0]), record[1], nb::cast<uintptr_t>(record[2]), nb::cast<uintptr_t>(record[3]),
                          nb::cast<int64_t>(record[4])});
    }
  }

  int traverse(visitproc visit, void* arg) {
    for (const Watched& w : watched_) Py_VISIT(w.owner.ptr());
    Py_VISIT(structure_object_.ptr());
    return 0;
  }

 protected:
  // A plain tensor in the CPU's memory.
  bool looks_plain(PyObject* input, dlpack::Tensor& x) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(input)) == torch_.tensor.ptr() && torch_.look(input, x) && x.device.type == dlpack::kCpu;
  }

  // Nobody watches, parameters and modules are what they were, and no gradient is wanted of parameters or arguments, which
  // are tensors. A mode that was excused is passed by as long as `without` lives.
  bool is_calm(PyObject* arguments, std::optional<WithoutModes>& without) const {
    return !is_watched(without) && is_fresh() && !wants_grad(arguments) && (structure_ == nullptr || structure_->unchanged());
  }

  void forget() {
    watched_.clear();
    structure_ = nullptr;
    structure_object_.reset();
  }

  Torch torch_;

 private:
  struct Watcher {
    nb::object watches, excuse;  // the latter or None: whether what watches may be passed by
  };

  bool is_watched(std::optional<WithoutModes>& without) const {
    if (!watchers_.empty() && torch_.has_dual_level()) return true;
    for (const auto& [watches, excuse] : watchers_) {
      if (!is_true(call(watches))) continue;
      if (excuse.is_none() || !is_true(call(excuse))) return true;
      without.emplace(torch_);
    }
    return false;
  }

  bool is_fresh() const {
    for (const Watched& w : watched_)
      if (!w.is_unchanged(torch_)) return false;
    return true;
  }

  // After is_fresh: what is watched are tensors.
  bool wants_grad(PyObject* arguments) const {
    if (!is_true(call(torch_.is_grad_enabled))) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments); i++)
      if (torch_.wants_grad(PyTuple_GET_ITEM(arguments, i))) return true;
    for (const Watched& w : watched_)
      if (torch_.wants_grad(w.tensor())) return true;
    return false;
  }

  std::vector<Watcher> watchers_;
  std::vector<Watched> watched_;
  const Structure* structure_;
  nb::object structure_object_;
};

class Door : public Watch {
 public:
  Door(nb::list watchers, nb::list watched, nb::object conv_pool, nb::object mlp, nb::object structure)
      : Watch(watchers, watched, structure), conv_pool_(nb::cast<const ConvPool*>(conv_pool)), mlp_(nb::cast<const Mlp*>(mlp)), kernels_{conv_pool, mlp} {
    if (conv_pool_ == nullptr && mlp_ == nullptr) throw std::invalid_argument("Door: needs conv_pool or mlp, got neither");
  }

  // From now on inputs of this one's data type and shape are taken; `size` is that of their result.
  void admit(nb::handle input, nb::tuple size) {
    dlpack::Tensor x;
    Form form;
    if (admitted_.size() < kMaxForms && torch_.look(input.ptr(), x) && form_of(x, form)) admitted_[form] = size;
  }

  // The result, or None where the general way has to decide. The form first: callers try several doors one after the other.
  nb::object pass(PyObject* arguments) const {
    dlpack::Tensor x;
    Form form;
    if (PyTuple_GET_SIZE(arguments) != 1) return nb::none();
    PyObject* const input = PyTuple_GET_ITEM(arguments, 0);
    if (!looks_plain(input, x) || !form_of(x, form)) return nb::none();
    const auto size = admitted_.find(form);
    std::optional<WithoutModes> without;
    if (size == admitted_.end() || !is_calm(arguments, without) || !has_values_in_order(input, x)) return nb::none();
    return compute(input, form, x.data, size->second);
  }

  void clear() {
    admitted_.clear();  // a door without watched tensors may let nothing in
    forget();
  }

 private:
  // As they are, in memory.
  bool has_values_in_order(PyObject* input, const dlpack::Tensor& x) const {
    if (x.data == nullptr || !is_contiguous(x)) return false;
    return !is_true(checked(PyObject_CallOneArg(torch_.is_neg.ptr(), input)));
  }

  nb::object compute(PyObject* input, const Form& form, const void* x, const nb::tuple& size) const {
    PyObject* arguments[1 + kMaxRank] = {input};
    const size_t rank = nb::len(size);
    for (size_t i = 0; i < rank; i++) arguments[1 + i] = PyTuple_GET_ITEM(size.ptr(), Py_ssize_t(i));
    nb::object output = checked(PyObject_Vectorcall(torch_.new_empty.ptr(), arguments, 1 + rank, nullptr));
    const nb::object threads = call(torch_.get_num_threads);
    dlpack::Tensor y;
    if (torch_.api->look(output.ptr(), &y) != 0) nb::raise_python_error();
    run(form, static_cast<const float*>(x), static_cast<float*>(y.data), int(PyLong_AsLong(threads.ptr())));
    return output;
  }

  void run(const Form& form, const float* x, float* y, int threads) const {
    const nb::gil_scoped_release release;
    const int64_t rank = form[1], batch = form[2], height = form[4], width = form[5];
    if (conv_pool_ == nullptr) {
      int64_t rows = 1;
      for (int64_t i = 0; i + 1 < rank; i++) rows *= form[size_t(2 + i)];
      mlp_->run(x, mlp_->in_features(), rows, y, threads);
    } else if (mlp_ == nullptr)
      conv_pool_->run(x, batch, height, width, y, threads);
    else
      conv_pool_->run_mlp(*mlp_, x, batch, height, width, y, threads);
  }

  std::map<Form, nb::tuple> admitted_;
  const ConvPool* conv_pool_;
  const Mlp* mlp_;
  std::array<nb::object, 2> kernels_;  // keeps both alive
};

class Gate : public Watch {
 public:
  Gate(nb::list watchers, nb::list watched, nb::object structure, bool strides) : Watch(watchers, watched, structure), strides_(strides) {}

  // From now on it is open to inputs of these data types and shapes.
  void admit(nb::args inputs) {
    std::vector<Form> forms;
    if (admitted_.size() < kMaxForms && forms_of(inputs.ptr(), forms)) admitted_.insert(forms);
  }

  // Whether it is open.
  nb::object pass(PyObject* arguments) const {
    std::vector<Form> forms;
    std::optional<WithoutModes> without;
    return nb::bool_(forms_of(arguments, forms) && admitted_.count(forms) > 0 && is_calm(arguments, without));
  }

  void clear() {
    admitted_.clear();
    forget();
  }

 private:
  bool forms_of(PyObject* inputs, std::vector<Form>& forms) const {
    dlpack::Tensor x;
    forms.resize(size_t(PyTuple_GET_SIZE(inputs)));
    for (size_t i = 0; i < forms.size(); i++)
      if (!looks_plain(PyTuple_GET_ITEM(inputs, Py_ssize_t(i)), x) || !form_of(x, forms[i], strides_)) return false;
    return true;
  }

  bool strides_;
  std::set<std::vector<Form>> admitted_;
};

// Slots instead of methods: `door(*arguments)` hands its tuple over as it is.
template <class T>
PyObject* pass(PyObject* self, PyObject* arguments, PyObject*) noexcept {
  try {
    return nb::inst_ptr<T>(self)->pass(arguments).release().ptr();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <class T>
PyType_Slot slots[] = {{Py_tp_call, (void*)pass<T>}, {Py_tp_traverse, (void*)traverse<T>}, {Py_tp_clear, (void*)clear<T>}, {0, nullptr}};

}  // namespace

void bind_door(nb::module_& m) {
  nb::class_<Door>(m, "Door", nb::type_slots(slots<Door>), "See kernels/door.py.")
      .def(nb::init<nb::list, nb::list, nb::object, nb::object, nb::object>(), "watchers"_a, "watched"_a, "conv_pool"_a.none(),
           "mlp"_a.none(), "structure"_a = nb::none())
      .def_static("is_supported", [] { return exchange_api() != nullptr; }, "Whether this torch lets the door look at its tensors.")
      .def("admit", &Door::admit, "input"_a, "size"_a);
  nb::class_<Gate>(m, "Gate", nb::type_slots(slots<Gate>), "See kernels/door.py.")
      .def(nb::init<nb::list, nb::list, nb::object, bool>(), "watchers"_a, "watched"_a, "structure"_a = nb::none(), "strides"_a = false)
      .def("admit", &Gate::admit);
}

}  // namespace fastgraph
