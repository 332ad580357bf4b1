// The job file: read, checked completely, and its program resolved to slots.
#pragma once

#include <string>

#include "common.h"
#include "tensors.h"

namespace mtu {

struct Spec {
  std::string name;
  Form form;
};

struct Part {
  std::string name, path, entry;
  std::vector<Spec> inputs, outputs;
};

// One instruction. `in` and `out` are slots; a call's in the order of its part's inputs and outputs.
struct Step {
  enum class Op { call, sum, scale, divide, concat, slice } op = Op::call;
  size_t part = 0;
  std::vector<size_t> in, out;
  std::vector<double> factors;  // sum
  float by = 1;                 // scale, divide
  size_t axis = 0;              // concat
  int64_t begin = 0;            // slice
};

// A register has a new slot each time it is written, so that every run of the program is the same.
struct Job {
  std::string engine, library, cpus = "all", outputs;
  std::vector<std::pair<std::string, std::string>> options;
  int32_t threads = 0;
  std::vector<Part> parts;
  std::unique_ptr<TensorFile> tensors;
  std::vector<Form> slots;
  std::map<std::string, size_t> registers;                 // after the program
  std::vector<std::pair<std::string, size_t>> initial;     // tensors that are used, and their slots
  std::vector<Step> program;
  std::map<std::string, std::string> expected;             // register -> tensor
  std::vector<std::string> keep;
  bool load_again = false;
  int64_t warmup = 0, samples = 1, cooldown_ms = 0;
  double deadline_s = 600;
};

// Reads `path`, whose folder is the working directory. Fails with code 2, or 3 for its tensors.
Job read_job(const std::string& path);

}  // namespace mtu
