// See structure.h and kernels/structure.py. An entry that was seen is held, so that its address is given to nothing else.
#include "structure.h"

#include "gc.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastgraph {
namespace {

// The instance's own dictionary, which a caller can replace as a whole (`module.__dict__ = ...`).
nb::object dict_of(nb::handle object) {
  PyObject* const dict = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (dict == nullptr) nb::raise_python_error();
  return nb::steal(dict);
}

bool contains(nb::handle set, PyObject* key) {
  const int found = set.is_valid() ? PySet_Contains(set.ptr(), key) : 0;
  if (found < 0) nb::raise_python_error();
  return found;
}

}  // namespace

Structure::Structure(nb::list modules, nb::frozenset ignored) : ordered_dict_(nb::module_::import_("collections").attr("OrderedDict")) {
  for (nb::handle module : modules) {
    const nb::object dict = dict_of(module);
    modules_.push_back({nb::borrow(module), nb::borrow(module.type()), dict});
    see_dict(dict, ignored);
  }
  for (const Module& seen : modules_)
    for (auto [key, value] : nb::borrow<nb::dict>(seen.dict))
      if (!contains(ignored, key.ptr())) see_inside(value);
}

void Structure::see_inside(nb::handle value) {
  PyObject* const object = value.ptr();
  if (PyDict_CheckExact(object)) {
    see_dict(value, nb::handle());
  } else if (value.type().is(ordered_dict_)) {
    see_dict(value, nb::handle());
    if (nb::len(value) > 1) see_iterable(value);  // move_to_end changes nothing else
  } else if (PyAnySet_CheckExact(object)) {
    see_iterable(value);
  } else if (PyList_CheckExact(object)) {
    Container seen{nb::borrow(value), Kind::kList, {}};
    for (nb::handle item : nb::borrow<nb::list>(value)) seen.entries.push_back({nb::object(), nb::borrow(item)});
    containers_.push_back(std::move(seen));
  }
}

void Structure::see_dict(nb::handle dict, nb::handle ignored) {
  Container seen{nb::borrow(dict), Kind::kDict, {}};
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict.ptr(), &position, &key, &value))
    seen.entries.push_back({nb::borrow(key), contains(ignored, key) ? nb::object() : nb::borrow(value)});
  containers_.push_back(std::move(seen));
}

void Structure::see_iterable(nb::handle iterable) {
  Container seen{nb::borrow(iterable), Kind::kIterable, {}};
  for (nb::handle key : iterable) seen.entries.push_back({nb::borrow(key), nb::object()});
  containers_.push_back(std::move(seen));
}

bool Structure::is_unchanged(const Module& seen) {
  return seen.module.type().is(seen.type) && dict_of(seen.module).is(seen.dict);
}

bool Structure::is_unchanged(const Container& seen) {
  PyObject* const object = seen.object.ptr();
  const Py_ssize_t count = Py_ssize_t(seen.entries.size());
  if (seen.kind == Kind::kList) {
    if (PyList_GET_SIZE(object) != count) return false;
    for (Py_ssize_t i = 0; i < count; i++)
      if (PyList_GET_ITEM(object, i) != seen.entries[size_t(i)].value.ptr()) return false;
    return true;
  }
  if (seen.kind == Kind::kIterable) {
    if (PyObject_Size(object) != count) return false;
    if (count == 0) return true;
    auto entry = seen.entries.begin();
    for (nb::handle key : seen.object)
      if (!key.is((entry++)->key)) return false;
    return true;
  }
  if (PyDict_GET_SIZE(object) != count) return false;
  Py_ssize_t position = 0;
  PyObject *key = nullptr, *value = nullptr;
  for (const Entry& entry : seen.entries) {
    PyDict_Next(object, &position, &key, &value);
    if (key != entry.key.ptr() || (entry.value.is_valid() && value != entry.value.ptr())) return false;
  }
  return true;
}

bool Structure::unchanged() const {
  for (const Module& seen : modules_)
    if (!is_unchanged(seen)) return false;
  for (const Container& seen : containers_)
    if (!is_unchanged(seen)) return false;
  return !is_cleared_;
}

int Structure::traverse(visitproc visit, void* arg) {
  for (const Module& seen : modules_) {
    Py_VISIT(seen.module.ptr());
    Py_VISIT(seen.type.ptr());
    Py_VISIT(seen.dict.ptr());
  }
  for (const Container& seen : containers_) {
    Py_VISIT(seen.object.ptr());
    for (const Entry& entry : seen.entries) {
      Py_VISIT(entry.key.ptr());
      Py_VISIT(entry.value.ptr());
    }
  }
  return 0;
}

void Structure::clear() {
  is_cleared_ = true;
  // What goes with them may run code that asks here again.
  const std::vector<Module> modules = std::move(modules_);
  const std::vector<Container> containers = std::move(containers_);
  modules_.clear();
  containers_.clear();
}

void bind_structure(nb::module_& m) {
  static PyType_Slot slots[] = {{Py_tp_traverse, (void*)traverse<Structure>}, {Py_tp_clear, (void*)clear<Structure>}, {0, nullptr}};
  nb::class_<Structure>(m, "Structure", nb::type_slots(slots), "See kernels/structure.py.")
      .def(nb::init<nb::list, nb::frozenset>(), "modules"_a, "ignored"_a)
      .def("unchanged", &Structure::unchanged);
}

}  // namespace fastgraph
