// What all files of the runner share: its errors, tensors and small helpers.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"

namespace mtu {

// Exit codes; 3 to 5 are those of engine.h.
constexpr int kUsage = 2;
constexpr size_t kLargestTensor = size_t{1} << 30;    // bytes
constexpr size_t kLargestRegisters = size_t{1} << 32;  // bytes, all registers together

// An error that ends the job: its exit code and one line.
struct Failure {
  int code;
  std::string reason;
};

[[noreturn]] inline void fail(int code, std::string reason) {
  throw Failure{code, std::move(reason)};
}

using Shape = std::vector<int64_t>;

// Type and shape of a tensor; validated: rank at most 8, extents from 1, at most kLargestTensor.
struct Form {
  int32_t dtype = MTU_FLOAT32;
  Shape shape;

  size_t count() const {
    size_t product = 1;
    for (int64_t extent : shape) product *= static_cast<size_t>(extent);
    return product;
  }
  size_t bytes() const { return 4 * count(); }
  bool operator==(const Form& other) const {
    return dtype == other.dtype && shape == other.shape;
  }
  bool operator!=(const Form& other) const { return !(*this == other); }
};

// Whether `shape` obeys the limits of a tensor.
inline bool is_legal(const Shape& shape) {
  size_t bytes = 4;
  if (shape.size() > 8) return false;
  for (int64_t extent : shape) {
    if (extent < 1 || static_cast<uint64_t>(extent) > kLargestTensor) return false;
    bytes *= static_cast<size_t>(extent);
    if (bytes > kLargestTensor) return false;
  }
  return true;
}

inline std::string text(const Form& form) {
  std::string words = form.dtype == MTU_FLOAT32 ? "float32[" : "int32[";
  for (size_t axis = 0; axis < form.shape.size(); ++axis)
    words += (axis ? ", " : "") + std::to_string(form.shape[axis]);
  return words + "]";
}

// Values of a tensor; both types have four bytes.
struct Tensor {
  Form form;
  std::vector<uint32_t> words;

  void allocate() { words.resize(form.count()); }
  float* floats() { return reinterpret_cast<float*>(words.data()); }
  const float* floats() const { return reinterpret_cast<const float*>(words.data()); }
};

// One printable line of at most 600 bytes; bytes that do not print become '?'.
inline std::string line(const std::string& raw) {
  std::string clean;
  for (char letter : raw.substr(0, 600))
    clean += static_cast<unsigned char>(letter) < 32 || letter == 127 ? ' ' : letter;
  while (!clean.empty() && clean.back() == ' ') clean.pop_back();
  return clean;
}

}  // namespace mtu
