// Slots with which a bound class takes part in Python's garbage collection: T has traverse(visit, arg) and clear().
#pragma once

#include <nanobind/nanobind.h>

namespace fastgraph {

template <class T>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nanobind::inst_ready(self) ? nanobind::inst_ptr<T>(self)->traverse(visit, arg) : 0;
}

template <class T>
int clear(PyObject* self) {
  nanobind::inst_ptr<T>(self)->clear();
  return 0;
}

}  // namespace fastgraph
