// Tensors, safetensors files, and the error that ends a job.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"

namespace mtu {

using nlohmann::json;

constexpr size_t kLargestTensor = size_t{1} << 30;     // bytes
constexpr size_t kLargestRegisters = size_t{1} << 32;  // bytes of all registers together

struct Failure {
  int code;  // of engine.h: the exit code
  std::string reason;
};

[[noreturn]] inline void fail(int code, std::string reason) {
  throw Failure{code, std::move(reason)};
}

// Type and shape: rank at most 8, extents from 1, at most kLargestTensor.
struct Form {
  int32_t dtype = MTU_FLOAT32;
  std::vector<int64_t> shape;

  // Takes a shape from JSON; false where it is not legal.
  bool read_shape(const json& list);
  size_t count() const {
    return std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>());
  }
  size_t bytes() const { return 4 * count(); }
  std::string text() const;
  bool operator==(const Form& other) const { return dtype == other.dtype && shape == other.shape; }
  bool operator!=(const Form& other) const { return !(*this == other); }
};

// Values of a tensor; both types have four bytes.
struct Tensor {
  Form form;
  std::vector<uint32_t> words;

  void allocate() { words.resize(form.count()); }
  float* floats() { return reinterpret_cast<float*>(words.data()); }
  const float* floats() const { return reinterpret_cast<const float*>(words.data()); }
};

// A checked header; values are read one tensor at a time. Fails with code 3.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path);
  const std::map<std::string, Form>& forms() const { return forms_; }
  Tensor read(const std::string& name);

 private:
  std::string path_;
  std::ifstream file_;
  std::map<std::string, Form> forms_;
  std::map<std::string, uint64_t> offsets_;
};

// Writes beside `path` first and renames; fails with code 5.
void write_tensors(const std::string& path, const std::map<std::string, const Tensor*>& tensors);

// Puts `words` in the place of `path` at once; false where it cannot.
bool replace_file(const std::string& path, const std::string& words);

}  // namespace mtu
