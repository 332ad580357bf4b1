// The job: read, checked completely, its program resolved to slots; and its measurement.
#pragma once

#include <functional>
#include <memory>

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

// One instruction. `in` and `out` are slots; a call's in the order of its part's tensors.
struct Step {
  enum class Op { call, sum, scale, divide, concat, slice } op = Op::call;
  size_t part = 0;
  std::vector<size_t> in, out;
  std::vector<double> factors;  // sum
  float by = 1;                 // scale, divide
  size_t axis = 0;              // concat
  size_t begin = 0;             // slice
};

// A register has a new slot each time it is written, so that every run of the program is the same.
struct Job {
  std::string engine, library, cpus, outputs;
  std::map<std::string, std::string> options;
  int64_t threads = 0, warmup = 0, samples = 1, cooldown_ms = 0;
  double deadline_s = 600;
  bool load_again = false;
  std::vector<Part> parts;
  std::unique_ptr<TensorFile> tensors;
  std::vector<Form> slots;
  std::map<std::string, size_t> registers;  // after the program
  std::map<size_t, std::string> initial;    // slots of the tensors that are used
  std::vector<Step> program;
  std::map<std::string, std::string> expected;  // register -> tensor
  std::vector<std::string> keep;
};

// Reads a job whose folder is the working directory. Fails with code 2, or 3 for its tensors.
Job read_job(const std::string& path);

// Tells the parent an {"event": ...}, so that it knows even if this process is killed afterwards.
using Report = std::function<void(const json&)>;

// The child's work: one job; plugins lie in `folder`. Returns what of the result no event has told.
json measure(const std::string& path, const std::string& folder, const Report& report);

}  // namespace mtu
