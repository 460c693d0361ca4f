// The native half of kernels/structure.py: what modules are made of, and whether it is still so.
//
// An entry takes 2 to 3 ns, a module about 20 of them: only pointers are compared, and no Python code runs.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

namespace fastgraph {

class Structure {
 public:
  // `ignored` are keys of the modules' own dictionaries.
  Structure(nanobind::list modules, nanobind::frozenset ignored);

  bool unchanged() const;
  int traverse(visitproc visit, void* arg);
  void clear();

 private:
  struct Module {
    nanobind::object module, type, dict;
  };
  struct Entry {
    nanobind::object key, value;  // without a key: of a list; without a value: it may be any
  };
  enum class Kind { kDict, kList, kIterable };  // what is iterable is looked at by its order: an OrderedDict's, a set's
  struct Container {
    nanobind::object object;
    Kind kind;
    std::vector<Entry> entries;
  };

  void see_inside(nanobind::handle value);
  void see_dict(nanobind::handle dict, nanobind::handle ignored);
  void see_iterable(nanobind::handle iterable);
  static bool is_unchanged(const Module& seen);
  static bool is_unchanged(const Container& seen);

  bool is_cleared_ = false;
  std::vector<Module> modules_;
  std::vector<Container> containers_;
  nanobind::object ordered_dict_;
};

}  // namespace fastgraph
