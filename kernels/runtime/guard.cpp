// The native half of kernels/fast_path.py: everything that a call of one kernel does, in one step out of Python (FastPath), and
// all that a call of several operators asks before them (Guard). Neither knows what the kernel computes.
//
// A call between two runs of a kernel finds little of Python left in the cache (the weights of DeepLearningModel
// are twice the L2), so what counts is how much is touched. Of the 5.5 us that such a call takes above the
// kernel, measured on a Zen 5 at batch 1: the result's allocation 2.3, the observers 1.2, the six parameters 1.4.
// Tried: the C functions behind _version and data_ptr without the attribute look-up, 0.2 less; torch.empty for
// new_empty, the same.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <vector>

#include "gc.h"
#include "structure.h"
#include "torch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastgraph {
namespace {

constexpr size_t kMaxForms = 4096;
constexpr int kMaxViews = 8;  // inputs, and results, of a kernel with a fast path
constexpr int kMaxRank = 8;   // of a result

// Of each input data type, rank and sizes, and for a guard that minds them its strides. What most calls have is in the object itself:
// each cache line more that a call touches is one that weights have pushed out.
class Form {
 public:
  void clear() {
    count_ = 0;
    more_.clear();
  }
  void push_back(int64_t value) {
    if (count_ < kInside) inside_[count_++] = value;
    else more_.push_back(value);
  }
  bool operator<(const Form& other) const {
    if (count_ != other.count_) return count_ < other.count_;
    const auto [mine, its] = std::mismatch(inside_.begin(), inside_.begin() + count_, other.inside_.begin());
    if (mine != inside_.begin() + count_) return *mine < *its;
    return more_ < other.more_;
  }

 private:
  static constexpr size_t kInside = 13;
  size_t count_ = 0;
  std::array<int64_t, kInside> inside_;
  std::vector<int64_t> more_;
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

void append_form(const dlpack::Tensor& x, Form& form, bool strides = false) {
  form.push_back(int64_t(x.dtype.code) << 32 | x.dtype.bits << 16 | x.dtype.lanes);
  form.push_back(x.rank);
  for (int i = 0; i < x.rank; i++) form.push_back(x.shape[i]);
  for (int i = 0; strides && i < x.rank; i++) form.push_back(x.strides[i]);
}

// A call's form is built here, so that nothing is allocated for it.
Form& scratch_form() {
  static thread_local Form form;
  form.clear();
  return form;
}

// What has to hold in a call for packed weights, or whatever else was computed from parameters, to be used as they are.
class Watch {
 public:
  Watch(nb::list observers, nb::list watched, nb::object structure)
      : structure_(nb::cast<const Structure*>(structure)), structure_object_(structure) {
    if (torch_.api == nullptr) throw std::runtime_error("needs torch.Tensor.__dlpack_c_exchange_api__ of version 1");
    for (nb::handle entry : observers) {
      const auto observer = nb::cast<nb::tuple>(entry);
      observers_.push_back({observer[0], observer[1]});
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

  // Nobody observes, parameters and modules are what they were, and no gradient is wanted of parameters or arguments, which
  // are tensors. A mode that is harmless is passed by as long as `without` lives.
  bool holds(PyObject* arguments, std::optional<WithoutModes>& without) const {
    return !is_observed(without) && is_fresh() && !wants_grad(arguments) && (structure_ == nullptr || structure_->unchanged());
  }

  void forget() {
    watched_.clear();
    structure_ = nullptr;
    structure_object_.reset();
  }

  Torch torch_;

 private:
  struct Observer {
    nb::object observes, is_harmless;  // the latter or None: whether what observes may be passed by
  };

  bool is_observed(std::optional<WithoutModes>& without) const {
    if (!observers_.empty() && torch_.has_dual_level()) return true;
    for (const auto& [observes, is_harmless] : observers_) {
      if (!is_true(call(observes))) continue;
      if (is_harmless.is_none() || !is_true(call(is_harmless))) return true;
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

  std::vector<Observer> observers_;
  std::vector<Watched> watched_;
  const Structure* structure_;
  nb::object structure_object_;
};

const Kernel& kernel_of(const nb::object& kernel) {
  if (!nb::isinstance<Kernel>(kernel)) throw std::invalid_argument("FastPath: kernel: needs a Kernel");
  return *nb::cast<const Kernel*>(kernel);
}

class FastPath : public Watch {
 public:
  FastPath(nb::list observers, nb::list watched, nb::object kernel, nb::object structure)
      : Watch(observers, watched, structure), kernel_(kernel_of(kernel)), kernel_object_(kernel) {}

  // From now on inputs of these data types and shapes are taken; `sizes` are those of their results.
  void admit(nb::list inputs, nb::list sizes) {
    if (admitted_.size() >= kMaxForms || nb::len(inputs) != size_t(kernel_.input_count())) return;
    Form form;
    dlpack::Tensor x;
    View view;
    for (nb::handle input : inputs) {
      if (!torch_.look(input.ptr(), x) || !view_of(x, view)) return;
      append_form(x, form);
    }
    Results results;
    if (nb::len(sizes) > results.sizes.size()) return;
    for (nb::handle size : sizes) {
      results.sizes[results.count++] = nb::cast<nb::tuple>(size);
      if (nb::len(size) > size_t(kMaxRank)) return;
    }
    admitted_[form] = std::move(results);
  }

  // The result, a tuple where there are several, or None where the general way has to decide. The form first: callers try several
  // fast paths one after the other.
  nb::object pass(PyObject* arguments) const {
    const int count = kernel_.input_count();
    if (PyTuple_GET_SIZE(arguments) != count || count > kMaxViews) return nb::none();
    std::array<View, kMaxViews> inputs;
    Form& form = scratch_form();
    for (int i = 0; i < count; i++) {
      dlpack::Tensor x;
      if (!looks_plain(PyTuple_GET_ITEM(arguments, i), x) || !view_of(x, inputs[size_t(i)])) return nb::none();
      append_form(x, form);
      if (x.data == nullptr || !is_contiguous(x)) return nb::none();
    }
    const auto sizes = admitted_.find(form);
    std::optional<WithoutModes> without;
    if (sizes == admitted_.end() || !holds(arguments, without)) return nb::none();
    for (int i = 0; i < count; i++)
      if (is_true(checked(PyObject_CallOneArg(torch_.is_neg.ptr(), PyTuple_GET_ITEM(arguments, i))))) return nb::none();
    return compute(PyTuple_GET_ITEM(arguments, 0), inputs.data(), sizes->second);
  }

  void clear() {
    admitted_.clear();  // one without watched tensors may let nothing in
    forget();
  }

 private:
  struct Results {
    size_t count = 0;
    std::array<nb::object, kMaxViews> sizes;
  };

  nb::object compute(PyObject* like, const View* inputs, const Results& admitted) const {
    std::array<View, kMaxViews> outputs;
    std::array<nb::object, kMaxViews> results;
    for (size_t i = 0; i < admitted.count; i++) {
      PyObject* arguments[1 + kMaxRank] = {like};
      PyObject* const size = admitted.sizes[i].ptr();
      const auto rank = size_t(PyTuple_GET_SIZE(size));
      for (size_t d = 0; d < rank; d++) arguments[1 + d] = PyTuple_GET_ITEM(size, Py_ssize_t(d));
      results[i] = checked(PyObject_Vectorcall(torch_.new_empty.ptr(), arguments, 1 + rank, nullptr));
      dlpack::Tensor y;
      if (torch_.api->look(results[i].ptr(), &y) != 0) nb::raise_python_error();
      view_of(y, outputs[i]);
    }
    const nb::object threads = call(torch_.get_num_threads);
    {
      const int count = int(PyLong_AsLong(threads.ptr()));
      const nb::gil_scoped_release release;
      kernel_.run(inputs, outputs.data(), count);
    }
    if (admitted.count == 1) return results[0];
    nb::object all = nb::steal(PyTuple_New(Py_ssize_t(admitted.count)));
    for (size_t i = 0; i < admitted.count; i++) PyTuple_SET_ITEM(all.ptr(), Py_ssize_t(i), results[i].release().ptr());
    return all;
  }

  std::map<Form, Results> admitted_;
  const Kernel& kernel_;
  nb::object kernel_object_;  // keeps it alive
};

class Guard : public Watch {
 public:
  Guard(nb::list observers, nb::list watched, nb::object structure, bool strides) : Watch(observers, watched, structure), strides_(strides) {}

  // From now on it is open to inputs of these data types and shapes.
  void admit(nb::args inputs) {
    Form form;
    if (admitted_.size() < kMaxForms && form_of(inputs.ptr(), form)) admitted_.insert(form);
  }

  // Whether it is open.
  nb::object pass(PyObject* arguments) const {
    Form& form = scratch_form();
    std::optional<WithoutModes> without;
    return nb::bool_(form_of(arguments, form) && admitted_.count(form) > 0 && holds(arguments, without));
  }

  void clear() {
    admitted_.clear();
    forget();
  }

 private:
  bool form_of(PyObject* inputs, Form& form) const {
    dlpack::Tensor x;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(inputs); i++) {
      if (!looks_plain(PyTuple_GET_ITEM(inputs, i), x)) return false;
      append_form(x, form, strides_);
    }
    return true;
  }

  bool strides_;
  std::set<Form> admitted_;
};

// Slots instead of methods: `guard(*arguments)` hands its tuple over as it is.
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

void bind_guard(nb::module_& m) {
  nb::class_<FastPath>(m, "FastPath", nb::type_slots(slots<FastPath>), "See kernels/fast_path.py.")
      .def(nb::init<nb::list, nb::list, nb::object, nb::object>(), "observers"_a, "watched"_a, "kernel"_a, "structure"_a = nb::none())
      .def_static("is_supported", [] { return exchange_api() != nullptr; }, "Whether this torch lets native code look at its tensors.")
      .def("admit", &FastPath::admit, "inputs"_a, "sizes"_a);
  nb::class_<Guard>(m, "Guard", nb::type_slots(slots<Guard>), "See kernels/fast_path.py.")
      .def(nb::init<nb::list, nb::list, nb::object, bool>(), "observers"_a, "watched"_a, "structure"_a = nb::none(), "strides"_a = false)
      .def("admit", &Guard::admit);
}

}  // namespace fastgraph
