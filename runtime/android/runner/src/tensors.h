// safetensors files of float32 and int32 tensors.
#pragma once

#include <string>

#include "common.h"

namespace mtu {

// A checked header; values are read one tensor at a time.
class TensorFile {
 public:
  // Fails with code 3.
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
void write_tensors(const std::string& path,
                   const std::vector<std::pair<std::string, const Tensor*>>& tensors);

}  // namespace mtu
