#include "measure.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "job.h"
#include "machine.h"
#include "program.h"

namespace mtu {

using nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_files(const Job& job) {
  for (const Part& part : job.parts) {
    struct stat about = {};
    const bool is_folder = job.engine == "onnx";
    if (stat(part.path.c_str(), &about) != 0)
      fail(MTU_BAD_ARTEFACT, "part " + part.name + ": " + part.path + " is missing");
    if (is_folder ? !S_ISDIR(about.st_mode) : !S_ISREG(about.st_mode))
      fail(MTU_BAD_ARTEFACT,
           "part " + part.name + ": " + part.path + " is not a " + (is_folder ? "folder" : "file"));
    const std::string file = part.path + "/" + part.entry;
    if (is_folder && (stat(file.c_str(), &about) != 0 || !S_ISREG(about.st_mode)))
      fail(MTU_BAD_ARTEFACT, "part " + part.name + ": " + file + " is not a file");
  }
}

const mtu_engine* open_engine(const Job& job, const std::string& folder, int32_t threads) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  const std::string path = folder + "/libmtu_" + job.engine + ".so";
  void* plugin = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) fail(MTU_NO_ENGINE, "engine " + job.engine + " is missing: " + dlerror());
  const auto get = reinterpret_cast<decltype(&mtu_engine_1)>(dlsym(plugin, "mtu_engine_1"));
  const mtu_engine* engine = get == nullptr ? nullptr : get();
  if (engine == nullptr)
    fail(MTU_NO_ENGINE, "engine " + job.engine + ": the plugin is not of this runner");
  std::vector<mtu_option> options;
  for (const auto& [key, value] : job.options) options.push_back({key.c_str(), value.c_str()});
  const int code = engine->start(job.library.c_str(), folder.c_str(), threads, options.data(),
                                 options.size());
  if (code != MTU_OK) fail(code, engine->error());
  return engine;
}

mtu_tensor bind(const Spec& spec, Tensor* tensor) {
  return {spec.name.c_str(),
          spec.form.dtype,
          static_cast<int32_t>(spec.form.shape.size()),
          spec.form.shape.data(),
          tensor == nullptr ? nullptr : tensor->words.data(),
          spec.form.bytes()};
}

// The parts of a job in their engine, and the registers of its program.
class Run {
 public:
  Run(Job& job, const mtu_engine* engine) : job_(job), engine_(engine), calls_(job.parts.size()) {}

  double load(size_t index) {
    const Part& part = job_.parts[index];
    std::vector<mtu_tensor> inputs, outputs;
    for (const Spec& spec : part.inputs) inputs.push_back(bind(spec, nullptr));
    for (const Spec& spec : part.outputs) outputs.push_back(bind(spec, nullptr));
    handles_.resize(job_.parts.size());
    const auto start = Clock::now();
    const int code = engine_->open(part.path.c_str(), part.entry.c_str(), inputs.data(),
                                   inputs.size(), outputs.data(), outputs.size(), &handles_[index]);
    const double seconds = since(start);
    if (code != MTU_OK) fail(code, "part " + part.name + ": " + engine_->error());
    return seconds;
  }
  double load_again(size_t index) {
    engine_->close(handles_[index]);
    handles_[index] = nullptr;
    const double seconds = load(index);
    engine_->close(handles_[index]);
    handles_[index] = nullptr;
    return seconds;
  }
  void fill() {
    for (const Form& form : job_.slots) slots_.push_back({form, {}});
    for (const auto& [name, slot] : job_.initial) slots_[slot] = job_.tensors->read(name);
    for (Tensor& tensor : slots_) tensor.allocate();
  }
  double sample(bool counts) {
    const auto start = Clock::now();
    for (const Step& step : job_.program) {
      if (step.op == Step::Op::call) {
        const double seconds = call(step);
        if (counts) calls_[step.part].push_back(seconds);
      } else {
        compute(step, slots_);
      }
    }
    return since(start);
  }
  const Tensor& at(const std::string& name) const { return slots_[job_.registers.at(name)]; }
  json calls() const {
    json calls = json::object();
    for (size_t index = 0; index < calls_.size(); ++index)
      calls[job_.parts[index].name] = {{"count", calls_[index].size()}, {"seconds", calls_[index]}};
    return calls;
  }

 private:
  double call(const Step& step) {
    const Part& part = job_.parts[step.part];
    std::vector<mtu_tensor> inputs, outputs;
    for (size_t index = 0; index < step.in.size(); ++index)
      inputs.push_back(bind(part.inputs[index], &slots_[step.in[index]]));
    for (size_t index = 0; index < step.out.size(); ++index)
      outputs.push_back(bind(part.outputs[index], &slots_[step.out[index]]));
    const auto start = Clock::now();
    const int code = engine_->run(handles_[step.part], inputs.data(), outputs.data());
    const double seconds = since(start);
    if (code != MTU_OK) fail(code, "part " + part.name + ": " + engine_->error());
    return seconds;
  }

  Job& job_;
  const mtu_engine* engine_;
  std::vector<void*> handles_;
  std::vector<Tensor> slots_;
  std::vector<std::vector<double>> calls_;
};

void run_samples(const Job& job, Run& run, const Report& report) {
  const int64_t runs = job.warmup + job.samples;
  for (int64_t number = 1; number <= runs; ++number) {
    if (number > 1 && job.cooldown_ms > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(job.cooldown_ms));
    const bool counts = number > job.warmup;
    const double seconds = run.sample(counts);
    report({{"event", "sample"}, {"number", number}, {"of", runs}, {"seconds", seconds},
            {"warmup", !counts}});
  }
}

}  // namespace

json measure(const std::string& path, const std::string& folder, const Report& report) {
  Job job = read_job(path);
  report({{"event", "job"}, {"deadline_s", job.deadline_s}});
  check_files(job);
  const int cpus = use_cpus(job.cpus);
  // An engine counts all cores by itself, also where it may use only some.
  const int32_t threads = job.threads == 0 && job.cpus != "all" ? cpus : job.threads;
  json memory, clocks;
  bool has_peak = reset_peak();
  memory["start"] = memory_now(has_peak);
  json total = highest_memory();

  has_peak = reset_peak();
  const mtu_engine* engine = open_engine(job, folder, threads);
  report({{"event", "engine"}, {"name", job.engine == "onnx" ? "onnxruntime" : "executorch"},
          {"version", engine->version()}, {"threads", threads}, {"mask", mask_now()}, {"machine", machine_now()}});
  Run run(job, engine);
  for (size_t index = 0; index < job.parts.size(); ++index)
    report({{"event", "loaded"}, {"part", job.parts[index].name}, {"seconds", run.load(index)}});
  memory["loaded"] = memory_now(has_peak);
  total = std::max(total, highest_memory());

  has_peak = reset_peak();
  run.fill();
  clocks["before"] = clocks_now();
  run_samples(job, run, report);
  clocks["after"] = clocks_now();
  memory["run"] = memory_now(has_peak);
  memory["peak_total"] = std::max(total, highest_memory());

  json psnr_db = json::object();
  for (const auto& [name, tensor] : job.expected)
    psnr_db[name] = psnr(job.tensors->read(tensor), run.at(name), name);
  if (!job.outputs.empty()) {
    std::vector<std::pair<std::string, const Tensor*>> kept;
    for (const std::string& name : job.keep) kept.emplace_back(name, &run.at(name));
    write_tensors(job.outputs, kept);
  }
  for (size_t index = 0; job.load_again && index < job.parts.size(); ++index)
    report({{"event", "loaded again"}, {"part", job.parts[index].name},
            {"seconds", run.load_again(index)}});
  return {{"calls", run.calls()}, {"memory", memory}, {"psnr_db", psnr_db},
          {"clocks_khz", clocks}};
}

}  // namespace mtu
