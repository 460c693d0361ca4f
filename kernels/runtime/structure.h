// The native half of kernels/structure.py: what modules are made of, and whether it is still so.
//
// Only pointers are compared, and no Python code runs. An entry takes 3 to 4 ns, and a module has about 20 of them; where
// Python counts the changes of its dictionaries (3.11) most are not looked at.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
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
    size_t begin, end;  // of its entries
    mutable uint64_t version;  // of a dictionary when it was last found unchanged
  };

  void see_inside(nanobind::handle value);
  void see_dict(nanobind::handle dict, nanobind::handle ignored);
  void see_iterable(nanobind::handle iterable);
  bool is_unchanged(const Container& seen) const;

  bool is_cleared_ = false;
  std::vector<Module> modules_;
  std::vector<nanobind::object> empty_dicts_;  // most of a module's containers
  std::vector<Container> containers_;
  std::vector<Entry> entries_;
  nanobind::object ordered_dict_;
};

}  // namespace fastgraph
