#include "job.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

namespace mtu {

using nlohmann::json;

namespace {

constexpr std::streamoff kLargestJob = 64'000'000;
constexpr size_t kMostCalls = 400'000;
constexpr double kLongestDeadline = 604'800;

json parse_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? std::streamoff(file.tellg()) : -1;
  if (size < 0 || size > kLargestJob)
    fail(kUsage, path + " cannot be read, or has more than 64,000,000 bytes");
  std::string words(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(words.data(), size)) fail(kUsage, path + " cannot be read");
  json document = json::parse(words, nullptr, false);
  if (!document.is_object()) fail(kUsage, path + " is not a JSON object");
  return document;
}

// An object of the job. Every key is taken once; `done` refuses those that nothing took.
class Object {
 public:
  Object(const json& value, std::string where) : value_(value), where_(std::move(where)) {
    if (!value.is_object()) refuse("an object is needed");
  }
  [[noreturn]] void refuse(const std::string& why) const {
    fail(kUsage, (where_.empty() ? "the job" : where_) + ": " + why);
  }
  std::string at(const std::string& key) const {
    return where_.empty() ? key : where_ + "." + key;
  }
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
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      fail(kUsage, at(key) + ": a string is needed");
    const auto& words = value.get_ref<const std::string&>();
    if (words.size() > 1024 || words.find('\0') != std::string::npos)
      fail(kUsage, at(key) + ": at most 1,024 bytes, none of them 0");
    return words;
  }
  std::string string(const std::string& key, const std::string& otherwise) {
    return find(key) ? string(key) : otherwise;
  }
  // A path below the job's folder.
  std::string path(const std::string& key) {
    const std::string words = string(key);
    for (size_t begin = 0; begin <= words.size();) {
      const size_t end = std::min(words.find('/', begin), words.size());
      const std::string name = words.substr(begin, end - begin);
      if (name.empty() || name == "." || name == "..")
        fail(kUsage, at(key) + ": a relative path without '.' and '..' is needed");
      begin = end + 1;
    }
    return words;
  }
  int64_t whole(const std::string& key, int64_t least, int64_t most) {
    const json& value = need(key);
    if (!value.is_number_integer() || value > most || value < least)
      fail(kUsage, at(key) + ": a whole number from " + std::to_string(least) + " to " +
                       std::to_string(most) + " is needed");
    return value.get<int64_t>();
  }
  int64_t whole(const std::string& key, int64_t least, int64_t most, int64_t otherwise) {
    return find(key) ? whole(key, least, most) : otherwise;
  }
  const json& list(const std::string& key, size_t most) {
    const json& value = need(key);
    if (!value.is_array() || value.size() > most)
      fail(kUsage, at(key) + ": a list of at most " + std::to_string(most) + " is needed");
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
  const json& value() const { return value_; }

 private:
  const json& value_;
  std::string where_;
  std::set<std::string> taken_;
};

float nonzero(Object& object, const std::string& key) {
  const json& value = object.need(key);
  const float number = value.is_number() ? static_cast<float>(value.get<double>()) : 0.0F;
  if (!std::isfinite(number) || number == 0)
    fail(kUsage, object.at(key) + ": a finite number other than 0 is needed");
  return number;
}

Spec read_spec(const json& value, const std::string& where) {
  Object object(value, where);
  Spec spec;
  spec.name = object.string("name");
  const std::string dtype = object.string("dtype");
  if (dtype != "float32" && dtype != "int32") object.refuse("dtype is float32 or int32");
  spec.form.dtype = dtype == "float32" ? MTU_FLOAT32 : MTU_INT32;
  for (const json& extent : object.list("shape", 8)) {
    if (!extent.is_number_unsigned() || extent > kLargestTensor)
      object.refuse("an extent of shape is not a whole number within the limits");
    spec.form.shape.push_back(extent.get<int64_t>());
  }
  if (!is_legal(spec.form.shape)) object.refuse("extents from 1, and at most 1 GiB, are needed");
  object.done();
  return spec;
}

std::vector<Spec> read_specs(Object& part, const std::string& key, size_t least) {
  std::vector<Spec> specs;
  for (const json& value : part.list(key, 64)) {
    specs.push_back(read_spec(value, part.at(key) + "[" + std::to_string(specs.size()) + "]"));
    for (size_t other = 0; other + 1 < specs.size(); ++other)
      if (specs[other].name == specs.back().name)
        part.refuse("'" + specs.back().name + "' is twice in " + key);
  }
  if (specs.size() < least) part.refuse(key + " is empty");
  return specs;
}

void read_parts(Job& job, Object& root) {
  Object parts(root.need("parts"), "parts");
  for (const auto& [name, value] : parts.value().items()) {
    Object object(value, "parts." + name);
    Part part;
    part.name = name;
    part.path = object.path("path");
    part.entry = object.string("entry");
    if (part.entry.find('/') != std::string::npos || part.entry[0] == '.')
      object.refuse("entry is a name without '/' that does not begin with '.'");
    part.inputs = read_specs(object, "inputs", 0);
    part.outputs = read_specs(object, "outputs", 1);
    object.done();
    job.parts.push_back(std::move(part));
  }
  if (job.parts.empty() || job.parts.size() > 64) root.refuse("1 to 64 parts are needed");
}

void read_options(Job& job, Object& root) {
  if (root.find("options") == nullptr) return;
  for (const auto& [key, value] : root.names("options")) {
    const std::string where = "options." + key;
    if (job.engine != "onnx") fail(kUsage, where + ": " + job.engine + " has no options");
    if (key == "graph_optimization" && value != "all" && value != "none")
      fail(kUsage, where + ": all or none is needed");
    if (key == "arena" && value != "0" && value != "1") fail(kUsage, where + ": 0 or 1 is needed");
    job.options.emplace_back(key, value);
  }
}

// Resolves the registers of one instruction after another.
class Resolver {
 public:
  explicit Resolver(Job& job) : job_(job) {}

  size_t read(const Object& object, const std::string& name) {
    const auto written = job_.registers.find(name);
    if (written != job_.registers.end()) return written->second;
    if (!job_.tensors || job_.tensors->forms().count(name) == 0)
      object.refuse("nothing has written register '" + name + "' before");
    const size_t slot = write(name, job_.tensors->forms().at(name));
    job_.initial.emplace_back(name, slot);
    return slot;
  }
  size_t write(const std::string& name, const Form& form) {
    bytes_ += form.bytes();
    if (bytes_ > kLargestRegisters) fail(kUsage, "program: the registers take more than 4 GiB");
    job_.slots.push_back(form);
    if (!name.empty()) job_.registers[name] = job_.slots.size() - 1;
    return job_.slots.size() - 1;
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
      step.by = op == "divide" ? nonzero(object, "by") : factor(object.need("by"), object);
      step.in = {real(object, object.string("in"))};
      step.out = {write(object.string("out"), job_.slots[step.in[0]])};
    } else if (op == "concat") {
      concat(step, object);
    } else if (op == "slice") {
      step.op = Step::Op::slice;
      step.in = {read(object, object.string("in"))};
      Form form = job_.slots[step.in[0]];
      if (form.shape.empty()) object.refuse("register in has no axis 0");
      step.begin = object.whole("begin", 0, form.shape[0] - 1);
      form.shape[0] = 1;
      step.out = {write(object.string("out"), form)};
    } else {
      object.refuse("op '" + op + "' is none of call, sum, scale, divide, concat, slice");
    }
    object.done();
    job_.program.push_back(std::move(step));
  }

 private:
  // The slot of a float32 register.
  size_t real(const Object& object, const std::string& name) {
    const size_t slot = read(object, name);
    if (job_.slots[slot].dtype != MTU_FLOAT32)
      object.refuse("register '" + name + "' is not float32");
    return slot;
  }
  static float factor(const json& value, const Object& object) {
    const float number = value.is_number() ? static_cast<float>(value.get<double>()) : NAN;
    if (!std::isfinite(number)) object.refuse("by: a finite number is needed");
    return number;
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
        object.refuse("input '" + spec.name + "' is " + text(spec.form) + ", register '" +
                      inputs[spec.name] + "' " + text(job_.slots[slot]));
      step.in.push_back(slot);
      inputs.erase(spec.name);
    }
    std::set<std::string> targets;
    for (const Spec& spec : part.outputs) {
      const auto target = outputs.find(spec.name);
      const std::string to = target == outputs.end() ? "" : target->second;
      if (!to.empty() && !targets.insert(to).second)
        object.refuse("two outputs go to register '" + to + "'");
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
      if (!term.is_array() || term.size() != 2 || !term[0].is_number() || !term[1].is_string() ||
          !std::isfinite(term[0].get<double>()))
        object.refuse("a term is a list of a finite factor and a register");
      step.factors.push_back(term[0].get<double>());
      step.in.push_back(real(object, term[1].get<std::string>()));
      if (job_.slots[step.in.back()] != job_.slots[step.in[0]])
        object.refuse("its registers differ in shape");
    }
    if (step.in.empty()) object.refuse("terms is empty");
    step.out = {write(object.string("out"), job_.slots[step.in[0]])};
  }
  void concat(Step& step, Object& object) {
    step.op = Step::Op::concat;
    const json& names = object.list("in", 1024);
    if (names.empty()) object.refuse("in is empty");
    Form form;
    for (const json& name : names) {
      if (!name.is_string()) object.refuse("in is a list of registers");
      step.in.push_back(read(object, name.get<std::string>()));
      const Form& next = job_.slots[step.in.back()];
      if (step.in.size() == 1) {
        form = next;
        if (form.shape.empty()) object.refuse("its registers have no axis");
        const auto last = static_cast<int64_t>(form.shape.size()) - 1;
        step.axis = static_cast<size_t>(object.whole("axis", 0, last));
        continue;
      }
      if (next.shape.size() != form.shape.size()) object.refuse("its registers differ in rank");
      Form fitting = next;
      fitting.shape[step.axis] = form.shape[step.axis];
      if (fitting != form) object.refuse("its registers differ in type, or in another axis");
      form.shape[step.axis] += next.shape[step.axis];
      if (!is_legal(form.shape)) object.refuse("the result has more than 1 GiB");
    }
    step.out = {write(object.string("out"), form)};
  }

  Job& job_;
  size_t bytes_ = 0;
};

void read_expected(Job& job, Object& root, Resolver& resolver) {
  if (root.find("expected") != nullptr) job.expected = root.names("expected");
  for (const auto& [name, tensor] : job.expected) {
    const Object where(root.value(), "expected." + name);
    const Form form = job.slots[resolver.read(where, name)];
    if (!job.tensors || job.tensors->forms().count(tensor) == 0)
      where.refuse("there is no tensor '" + tensor + "'");
    if (form.dtype != MTU_FLOAT32 || form != job.tensors->forms().at(tensor))
      where.refuse("the register is " + text(form) + ", tensor '" + tensor + "' " +
                   text(job.tensors->forms().at(tensor)));
  }
  if ((root.find("outputs") == nullptr) != (root.find("keep") == nullptr))
    root.refuse("outputs and keep stand together or not at all");
  if (root.find("outputs") == nullptr) return;
  job.outputs = root.path("outputs");
  for (const json& name : root.list("keep", 1024)) {
    if (!name.is_string()) root.refuse("keep is a list of registers");
    resolver.read(root, name.get<std::string>());
    job.keep.push_back(name.get<std::string>());
  }
}

}  // namespace

Job read_job(const std::string& path) {
  const json document = parse_file(path);
  Object root(document, "");
  Job job;
  root.whole("format", 1, 1);
  job.engine = root.string("engine");
  if (job.engine != "onnx" && job.engine != "executorch")
    root.refuse("engine is onnx or executorch");
  if (root.find("library") != nullptr) {
    if (job.engine != "onnx") root.refuse("library: executorch's libraries lie beside the runner");
    job.library = root.path("library");
  }
  read_options(job, root);
  job.threads = static_cast<int32_t>(root.whole("threads", 0, 1024, 0));
  job.cpus = root.string("cpus", "all");
  read_parts(job, root);
  if (root.find("load_again") != nullptr) {
    if (!root.need("load_again").is_boolean()) root.refuse("load_again is true or false");
    job.load_again = root.need("load_again").get<bool>();
  }
  job.warmup = root.whole("warmup", 0, 100'000, 0);
  job.samples = root.whole("samples", 1, 100'000);
  job.cooldown_ms = root.whole("cooldown_ms", 0, 600'000, 0);
  if (const json* seconds = root.find("deadline_s")) {
    job.deadline_s = seconds->is_number() ? seconds->get<double>() : 0;
    if (!(job.deadline_s > 0 && job.deadline_s <= kLongestDeadline))
      root.refuse("deadline_s is a number above 0, at most 604,800");
  }
  if (root.find("tensors") != nullptr)
    job.tensors = std::make_unique<TensorFile>(root.path("tensors"));
  Resolver resolver(job);
  const json& program = root.list("program", 100'000);
  if (program.empty()) root.refuse("program is empty");
  for (size_t index = 0; index < program.size(); ++index)
    resolver.step(program[index], "program[" + std::to_string(index) + "]");
  size_t calls = 0;
  for (const Step& step : job.program) calls += step.op == Step::Op::call ? 1 : 0;
  if (calls * static_cast<size_t>(job.samples) > kMostCalls)
    root.refuse("the samples make more than 400,000 calls");
  read_expected(job, root, resolver);
  root.done();
  return job;
}

}  // namespace mtu
