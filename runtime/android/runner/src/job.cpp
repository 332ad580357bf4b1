#include "job.h"

#include <cmath>
#include <filesystem>
#include <set>

namespace mtu {
namespace {

// An object of the job. Every key is taken once; `done` refuses those that nothing took.
class Object {
 public:
  Object(const json& value, std::string where) : value_(value), where_(std::move(where)) {
    if (!value.is_object()) refuse("an object is needed");
  }
  [[noreturn]] void refuse(const std::string& why) const {
    fail(MTU_BAD_JOB, (where_.empty() ? "the job" : where_) + ": " + why);
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    fail(MTU_BAD_JOB, at(key) + ": " + why);
  }
  std::string at(const std::string& key) const { return where_.empty() ? key : where_ + "." + key; }
  const json& value() const { return value_; }
  const json* find(const std::string& key) {
    taken_.insert(key);
    const auto entry = value_.find(key);
    return entry == value_.end() ? nullptr : &*entry;
  }
  const json& need(const std::string& key) {
    const json* value = find(key);
    if (value == nullptr) refuse("key '" + key + "' is missing");
    return *value;
  }
  std::string string(const std::string& key) {
    const json& value = need(key);
    if (!value.is_string()) refuse(key, "a string is needed");
    const auto& words = value.get_ref<const std::string&>();
    if (words.empty() || words.size() > 1024 || words.find('\0') != std::string::npos)
      refuse(key, "1 to 1,024 bytes are needed, none of them 0");
    return words;
  }
  // A path below the job's folder.
  std::string path(const std::string& key) {
    const std::string words = string(key), framed = "/" + words + "/";
    for (const char* bad : {"//", "/./", "/../"})
      if (framed.find(bad) != std::string::npos)
        refuse(key, "a relative path without '.' and '..' is needed");
    return words;
  }
  // A whole number; a key with a default may be missing.
  int64_t whole(const std::string& key, int64_t least, int64_t most, int64_t otherwise = -1) {
    if (otherwise >= 0 && find(key) == nullptr) return otherwise;
    const json& value = need(key);
    if (!value.is_number_integer() || value > most || value < least)
      refuse(key, "a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                      " is needed");
    return value.get<int64_t>();
  }
  float factor(const std::string& key) {
    const json& value = need(key);
    const float number = value.is_number() ? static_cast<float>(value.get<double>()) : NAN;
    if (!std::isfinite(number)) refuse(key, "a finite number is needed");
    return number;
  }
  const json& list(const std::string& key, size_t most) {
    const json& value = need(key);
    if (!value.is_array() || value.size() > most)
      refuse(key, "a list of at most " + std::to_string(most) + " is needed");
    return value;
  }
  std::map<std::string, std::string> names(const std::string& key) {
    std::map<std::string, std::string> pairs;
    Object inner(need(key), at(key));
    for (const auto& [name, value] : inner.value_.items()) pairs[name] = inner.string(name);
    return pairs;
  }
  void done() const {
    for (const auto& [key, value] : value_.items())
      if (taken_.count(key) == 0) refuse("key '" + key + "' is unknown");
  }

 private:
  const json& value_;
  std::string where_;
  std::set<std::string> taken_;
};

std::vector<Spec> read_specs(Object& part, const std::string& key) {
  std::vector<Spec> specs;
  std::set<std::string> names;
  for (const json& value : part.list(key, 64)) {
    Object object(value, part.at(key) + "[" + std::to_string(specs.size()) + "]");
    Spec spec{object.string("name"), {}};
    const std::string dtype = object.string("dtype");
    if (dtype != "float32" && dtype != "int32") object.refuse("dtype is float32 or int32");
    spec.form.dtype = dtype == "float32" ? MTU_FLOAT32 : MTU_INT32;
    if (!spec.form.read_shape(object.need("shape")))
      object.refuse("shape", "rank at most 8, extents from 1, at most 1 GiB are needed");
    object.done();
    if (!names.insert(spec.name).second) part.refuse("'" + spec.name + "' is twice in " + key);
    specs.push_back(std::move(spec));
  }
  return specs;
}

void read_parts(Job& job, Object& root) {
  Object parts(root.need("parts"), "parts");
  for (const auto& [name, value] : parts.value().items()) {
    Object object(value, "parts." + name);
    Part part{name, object.path("path"), object.string("entry"), {}, {}};
    if (part.entry.find('/') != std::string::npos || part.entry[0] == '.')
      object.refuse("entry is a name without '/' that does not begin with '.'");
    part.inputs = read_specs(object, "inputs");
    part.outputs = read_specs(object, "outputs");
    if (part.outputs.empty()) object.refuse("outputs is empty");
    object.done();
    job.parts.push_back(std::move(part));
  }
  if (job.parts.empty() || job.parts.size() > 64) root.refuse("1 to 64 parts are needed");
}

// What the job says beside parts, tensors and program.
void read_settings(Job& job, Object& root) {
  root.whole("format", 1, 1);
  job.engine = root.string("engine");
  if (job.engine != "onnx" && job.engine != "executorch")
    root.refuse("engine is onnx or executorch");
  if (root.find("library") != nullptr) job.library = root.path("library");
  if (root.find("options") != nullptr) job.options = root.names("options");
  if (job.engine != "onnx" && (!job.library.empty() || !job.options.empty()))
    root.refuse(job.engine + " has no options, and its libraries lie beside the runner");
  for (const auto& [key, value] : job.options) {
    if (key == "graph_optimization" && value != "all" && value != "none")
      root.refuse("options." + key, "all or none is needed");
    if (key == "arena" && value != "0" && value != "1")
      root.refuse("options." + key, "0 or 1 is needed");
  }
  job.threads = root.whole("threads", 0, 1024, 0);
  job.cpus = root.find("cpus") == nullptr ? "all" : root.string("cpus");
  job.warmup = root.whole("warmup", 0, 100'000, 0);
  job.samples = root.whole("samples", 1, 100'000);
  job.cooldown_ms = root.whole("cooldown_ms", 0, 600'000, 0);
  if (const json* value = root.find("load_again")) {
    if (!value->is_boolean()) root.refuse("load_again is true or false");
    job.load_again = value->get<bool>();
  }
  if (const json* value = root.find("deadline_s")) {
    job.deadline_s = value->is_number() ? value->get<double>() : 0;
    if (!(job.deadline_s > 0 && job.deadline_s <= 604'800))
      root.refuse("deadline_s is a number above 0, at most 604,800");
  }
}

// Resolves the registers of one instruction after another.
class Resolver {
 public:
  explicit Resolver(Job& job) : job_(job) {}

  size_t read(const Object& object, const json& name) {
    if (!name.is_string()) object.refuse("a register is named by a string");
    const auto& words = name.get_ref<const std::string&>();
    const auto written = job_.registers.find(words);
    if (written != job_.registers.end()) return written->second;
    if (!job_.tensors || job_.tensors->forms().count(words) == 0)
      object.refuse("nothing has written register '" + words + "' before");
    const size_t slot = write(words, job_.tensors->forms().at(words));
    job_.initial[slot] = words;
    return slot;
  }
  void step(const json& value, const std::string& where) {
    Object object(value, where);
    const std::string op = object.string("op");
    Step step;
    if (op == "call") {
      call(step, object);
    } else if (op == "sum") {
      sum(step, object);
    } else if (op == "scale" || op == "divide") {
      step.op = op == "scale" ? Step::Op::scale : Step::Op::divide;
      step.by = object.factor("by");
      if (op == "divide" && step.by == 0) object.refuse("by", "a number other than 0 is needed");
      step.in = {read_float(object, object.need("in"))};
      step.out = {write(object.string("out"), job_.slots[step.in[0]])};
    } else if (op == "concat") {
      concat(step, object);
    } else if (op == "slice") {
      step.op = Step::Op::slice;
      step.in = {read(object, object.need("in"))};
      Form form = job_.slots[step.in[0]];
      if (form.shape.empty()) object.refuse("its register has no axis");
      step.begin = static_cast<size_t>(object.whole("begin", 0, form.shape[0] - 1));
      form.shape[0] = 1;
      step.out = {write(object.string("out"), form)};
    } else {
      object.refuse("op '" + op + "' is none of call, sum, scale, divide, concat, slice");
    }
    object.done();
    job_.program.push_back(std::move(step));
  }

 private:
  size_t write(const std::string& name, const Form& form) {
    bytes_ += form.bytes();
    if (bytes_ > kLargestRegisters) fail(MTU_BAD_JOB, "the registers take more than 4 GiB");
    job_.slots.push_back(form);
    if (!name.empty()) job_.registers[name] = job_.slots.size() - 1;
    return job_.slots.size() - 1;
  }
  size_t read_float(const Object& object, const json& name) {
    const size_t slot = read(object, name);
    if (job_.slots[slot].dtype != MTU_FLOAT32)
      object.refuse("register '" + name.get<std::string>() + "' is not float32");
    return slot;
  }
  void call(Step& step, Object& object) {
    const std::string name = object.string("part");
    while (step.part < job_.parts.size() && job_.parts[step.part].name != name) ++step.part;
    if (step.part == job_.parts.size()) object.refuse("there is no part '" + name + "'");
    const Part& part = job_.parts[step.part];
    auto inputs = object.names("inputs"), outputs = object.names("outputs");
    for (const Spec& spec : part.inputs) {
      if (inputs.count(spec.name) == 0) object.refuse("input '" + spec.name + "' has no register");
      const size_t slot = read(object, inputs[spec.name]);
      if (job_.slots[slot] != spec.form)
        object.refuse("input '" + spec.name + "' is " + spec.form.text() + ", register '" +
                      inputs[spec.name] + "' " + job_.slots[slot].text());
      step.in.push_back(slot);
      inputs.erase(spec.name);
    }
    std::set<std::string> targets;
    for (const Spec& spec : part.outputs) {
      const std::string to = outputs.count(spec.name) ? outputs[spec.name] : "";
      if (!to.empty() && !targets.insert(to).second)
        object.refuse("'" + to + "' is twice in outputs");
      step.out.push_back(write(to, spec.form));
      outputs.erase(spec.name);
    }
    inputs.insert(outputs.begin(), outputs.end());
    if (!inputs.empty())
      object.refuse("part '" + name + "' has no input or output '" + inputs.begin()->first + "'");
  }
  void sum(Step& step, Object& object) {
    step.op = Step::Op::sum;
    for (const json& term : object.list("terms", 1024)) {
      if (!term.is_array() || term.size() != 2 || !term[0].is_number())
        object.refuse("a term is a list of a finite factor and a register");
      step.factors.push_back(term[0].get<double>());
      step.in.push_back(read_float(object, term[1]));
      if (job_.slots[step.in.back()] != job_.slots[step.in[0]])
        object.refuse("its registers differ in shape");
    }
    if (step.in.empty()) object.refuse("terms is empty");
    step.out = {write(object.string("out"), job_.slots[step.in[0]])};
  }
  void concat(Step& step, Object& object) {
    step.op = Step::Op::concat;
    for (const json& name : object.list("in", 1024)) step.in.push_back(read(object, name));
    if (step.in.empty()) object.refuse("in is empty");
    Form form = job_.slots[step.in[0]];
    if (form.shape.empty()) object.refuse("its registers have no axis");
    const auto rank = static_cast<int64_t>(form.shape.size());
    step.axis = static_cast<size_t>(object.whole("axis", 0, rank - 1));
    int64_t extent = 0;
    for (size_t slot : step.in) {
      Form next = job_.slots[slot];
      if (next.shape.size() != form.shape.size()) object.refuse("its registers differ in rank");
      extent += next.shape[step.axis];
      next.shape[step.axis] = form.shape[step.axis];
      if (next != form) object.refuse("its registers differ in type, or in another axis");
    }
    form.shape[step.axis] = extent;
    if (form.bytes() > kLargestTensor) object.refuse("the result has more than 1 GiB");
    step.out = {write(object.string("out"), form)};
  }

  Job& job_;
  size_t bytes_ = 0;
};

void read_results(Job& job, Object& root, Resolver& resolver) {
  if (root.find("expected") != nullptr) job.expected = root.names("expected");
  for (const auto& [name, tensor] : job.expected) {
    const Object where(root.value(), "expected." + name);
    const Form form = job.slots[resolver.read(where, name)];
    if (!job.tensors || job.tensors->forms().count(tensor) == 0)
      where.refuse("there is no tensor '" + tensor + "'");
    const Form& reference = job.tensors->forms().at(tensor);
    if (form.dtype != MTU_FLOAT32 || form != reference)
      where.refuse("the register is " + form.text() + ", tensor '" + tensor + "' " +
                   reference.text());
  }
  if ((root.find("outputs") == nullptr) != (root.find("keep") == nullptr))
    root.refuse("outputs and keep stand together or not at all");
  if (root.find("outputs") == nullptr) return;
  job.outputs = root.path("outputs");
  for (const json& name : root.list("keep", 1024)) {
    resolver.read(root, name);
    job.keep.push_back(name.get<std::string>());
  }
}

}  // namespace

Job read_job(const std::string& path) {
  std::error_code error;
  const bool is_file = std::filesystem::is_regular_file(path, error);
  std::ifstream file(is_file ? path : "");
  const json document = json::parse(file, nullptr, false);
  if (!document.is_object()) fail(MTU_BAD_JOB, path + " is not a readable JSON object");
  Object root(document, "");
  Job job;
  read_settings(job, root);
  read_parts(job, root);
  if (root.find("tensors") != nullptr)
    job.tensors = std::make_unique<TensorFile>(root.path("tensors"));
  Resolver resolver(job);
  for (const json& value : root.list("program", 100'000))
    resolver.step(value, "program[" + std::to_string(job.program.size()) + "]");
  size_t calls = 0;
  for (const Step& step : job.program) calls += step.op == Step::Op::call ? 1 : 0;
  if (calls == 0 || calls * static_cast<size_t>(job.samples) > 400'000)
    root.refuse("the samples make no call, or more than 400,000");
  read_results(job, root, resolver);
  root.done();
  return job;
}

}  // namespace mtu
