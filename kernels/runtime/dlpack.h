// The part of DLPack that torch.h needs to look at a torch.Tensor without torch's headers: the C structs behind
// `torch.Tensor.__dlpack_c_exchange_api__`, as fixed for major version 1 of https://github.com/dmlc/dlpack
// (include/dlpack/dlpack.h; the exchange functions came with 1.3).
#pragma once

#include <stdint.h>

namespace fastgraph::dlpack {

constexpr uint32_t kMajorVersion = 1;  // another one has another memory layout
constexpr int32_t kCpu = 1;

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t rank;
  DataType dtype;
  int64_t* shape;    // owned by the tensor that was looked at
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major_version, minor_version;
  const ExchangeApi* previous;  // a table of an older major version, or null
  void* owning_functions[3];    // not used here
  // Describes a tensor without owning it; -1 with a Python error where that cannot be. May be null.
  int (*look)(void* object, Tensor* out);
  void* current_work_stream;  // not used here
};

}  // namespace fastgraph::dlpack
