// See structure.h and kernels/structure.py. An entry that was seen is held, so that its address is given to nothing else.
#include "structure.h"

#include <utility>

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

// A number that no other state of any dictionary has (PEP 509), or 0 where Python does not say.
uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
  (void)dict;
  return 0;
#endif
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
    const size_t begin = entries_.size();
    for (nb::handle item : nb::borrow<nb::list>(value)) entries_.push_back({nb::object(), nb::borrow(item)});
    containers_.push_back({nb::borrow(value), Kind::kList, begin, entries_.size(), 0});
  }
}

void Structure::see_dict(nb::handle dict, nb::handle ignored) {
  if (PyDict_GET_SIZE(dict.ptr()) == 0) return empty_dicts_.push_back(nb::borrow(dict));
  const size_t begin = entries_.size();
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict.ptr(), &position, &key, &value))
    entries_.push_back({nb::borrow(key), contains(ignored, key) ? nb::object() : nb::borrow(value)});
  containers_.push_back({nb::borrow(dict), Kind::kDict, begin, entries_.size(), 0});
}

void Structure::see_iterable(nb::handle iterable) {
  const size_t begin = entries_.size();
  for (nb::handle key : iterable) entries_.push_back({nb::borrow(key), nb::object()});
  containers_.push_back({nb::borrow(iterable), Kind::kIterable, begin, entries_.size(), 0});
}

bool Structure::is_unchanged(const Container& seen) const {
  PyObject* const object = seen.object.ptr();
  const Py_ssize_t count = Py_ssize_t(seen.end - seen.begin);
  const Entry* entry = entries_.data() + seen.begin;
  const Entry* const end = entries_.data() + seen.end;
  if (seen.kind == Kind::kDict) {
    const uint64_t version = version_of(object);
    if (version != 0 && version == seen.version) return true;
    if (PyDict_GET_SIZE(object) != count) return false;
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *value = nullptr;
    for (; entry != end; entry++) {
      PyDict_Next(object, &position, &key, &value);
      if (key != entry->key.ptr() || (entry->value.is_valid() && value != entry->value.ptr())) return false;
    }
    seen.version = version;
  } else if (seen.kind == Kind::kList) {
    if (PyList_GET_SIZE(object) != count) return false;
    for (Py_ssize_t i = 0; i < count; i++)
      if (PyList_GET_ITEM(object, i) != entry[i].value.ptr()) return false;
  } else {
    if (PyObject_Size(object) != count) return false;
    if (count == 0) return true;
    for (nb::handle key : seen.object)
      if (!key.is((entry++)->key)) return false;
  }
  return true;
}

bool Structure::unchanged() const {
  for (const nb::object& dict : empty_dicts_)
    if (PyDict_GET_SIZE(dict.ptr()) != 0) return false;
  for (const Module& seen : modules_)
    if (!seen.module.type().is(seen.type) || !dict_of(seen.module).is(seen.dict)) return false;
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
  for (const nb::object& dict : empty_dicts_) Py_VISIT(dict.ptr());
  for (const Container& seen : containers_) Py_VISIT(seen.object.ptr());
  for (const Entry& entry : entries_) {
    Py_VISIT(entry.key.ptr());
    Py_VISIT(entry.value.ptr());
  }
  return 0;
}

void Structure::clear() {
  is_cleared_ = true;
  // Taken out first: what goes with them may run code that asks here again.
  std::exchange(modules_, {});
  std::exchange(empty_dicts_, {});
  std::exchange(containers_, {});
  std::exchange(entries_, {});
}

void bind_structure(nb::module_& m) {
  static PyType_Slot slots[] = {{Py_tp_traverse, (void*)traverse<Structure>}, {Py_tp_clear, (void*)clear<Structure>}, {0, nullptr}};
  nb::class_<Structure>(m, "Structure", nb::type_slots(slots), "See kernels/structure.py.")
      .def(nb::init<nb::list, nb::frozenset>(), "modules"_a, "ignored"_a)
      .def("unchanged", &Structure::unchanged);
}

}  // namespace fastgraph
