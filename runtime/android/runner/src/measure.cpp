#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "job.h"
#include "machine.h"

namespace mtu {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void sum(const Step& step, std::vector<Tensor>& slots) {
  Tensor& out = slots[step.out[0]];
  for (size_t index = 0; index < out.words.size(); ++index) {
    double total = 0;
    for (size_t term = 0; term < step.in.size(); ++term)
      total += step.factors[term] * static_cast<double>(slots[step.in[term]].floats()[index]);
    out.floats()[index] = static_cast<float>(total);
  }
}

void concat(const Step& step, std::vector<Tensor>& slots) {
  Tensor& out = slots[step.out[0]];
  size_t rows = 1, begin = 0;
  for (size_t axis = 0; axis < step.axis; ++axis)
    rows *= static_cast<size_t>(out.form.shape[axis]);
  for (size_t slot : step.in) {
    const size_t width = slots[slot].words.size() / rows;
    for (size_t row = 0; row < rows; ++row)
      std::copy_n(slots[slot].words.data() + row * width, width,
                  out.words.data() + row * (out.words.size() / rows) + begin);
    begin += width;
  }
}

void compute(const Step& step, std::vector<Tensor>& slots) {
  if (step.op == Step::Op::sum) return sum(step, slots);
  if (step.op == Step::Op::concat) return concat(step, slots);
  const Tensor& in = slots[step.in[0]];
  Tensor& out = slots[step.out[0]];
  const size_t count = out.words.size();
  if (step.op == Step::Op::slice)
    std::copy_n(in.words.data() + step.begin * count, count, out.words.data());
  else
    for (size_t index = 0; index < count; ++index)
      out.floats()[index] = step.op == Step::Op::scale ? in.floats()[index] * step.by
                                                       : in.floats()[index] / step.by;
}

// 20 log10(max|expected| / rmse), and 999 where they are equal.
double psnr(const Tensor& expected, const Tensor& actual, const std::string& name) {
  double peak = 0, squares = 0;
  for (size_t index = 0; index < expected.words.size(); ++index) {
    const double reference = expected.floats()[index];
    const double error = reference - static_cast<double>(actual.floats()[index]);
    peak = std::max(peak, std::abs(reference));
    squares += error * error;
  }
  if (squares == 0) return 999.0;
  const double rmse = std::sqrt(squares / static_cast<double>(expected.words.size()));
  const double decibels = 20 * std::log10(peak / rmse);
  if (!std::isfinite(decibels))
    fail(MTU_PART_FAILED, "register " + name + " is not finite, or is compared with zeros");
  return decibels;
}

const mtu_engine* open_engine(const Job& job, const std::string& folder) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  const std::string path = folder + "/libmtu_" + job.engine + ".so";
  void* plugin = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) fail(MTU_NO_ENGINE, "engine " + job.engine + " is missing: " + dlerror());
  const auto get = reinterpret_cast<decltype(&mtu_engine_1)>(dlsym(plugin, "mtu_engine_1"));
  if (get == nullptr)
    fail(MTU_NO_ENGINE, "engine " + job.engine + ": the plugin is not of this runner");
  std::vector<const char*> options;
  for (const auto& [key, value] : job.options)
    options.insert(options.end(), {key.c_str(), value.c_str()});
  options.push_back(nullptr);
  const mtu_engine* engine = get();
  const int code = engine->start(job.library.c_str(), folder.c_str(),
                                 static_cast<int32_t>(job.threads), options.data());
  if (code != MTU_OK) fail(code, engine->error());
  return engine;
}

// The parts of a job in their engine, and the registers of its program.
class Run {
 public:
  Run(Job& job, const mtu_engine* engine)
      : job_(job), engine_(engine), handles_(job.parts.size()), calls_(job.parts.size()) {}

  double load(size_t index) {
    const Part& part = job_.parts[index];
    const auto start = Clock::now();
    const int code = engine_->open(part.path.c_str(), part.entry.c_str(), part.inputs.size(),
                                   part.outputs.size(), &handles_[index]);
    const double seconds = since(start);
    if (code != MTU_OK) fail(code, "part " + part.name + ": " + engine_->error());
    return seconds;
  }
  void close(size_t index) { engine_->close(handles_[index]); }
  void fill() {
    for (const Form& form : job_.slots) slots_.push_back({form, {}});
    for (const auto& [slot, name] : job_.initial) slots_[slot] = job_.tensors->read(name);
    for (Tensor& tensor : slots_) tensor.allocate();
  }
  double sample(bool counts) {
    const auto start = Clock::now();
    for (const Step& step : job_.program) {
      if (step.op != Step::Op::call) {
        compute(step, slots_);
        continue;
      }
      const double seconds = call(step);
      if (counts) calls_[step.part].push_back(seconds);
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
  std::vector<mtu_tensor> bind(const std::vector<Spec>& specs, const std::vector<size_t>& slots) {
    std::vector<mtu_tensor> tensors;
    for (size_t index = 0; index < specs.size(); ++index) {
      const Form& form = specs[index].form;
      tensors.push_back({specs[index].name.c_str(), form.dtype,
                         static_cast<int32_t>(form.shape.size()), form.shape.data(),
                         slots_[slots[index]].words.data(), form.bytes()});
    }
    return tensors;
  }
  double call(const Step& step) {
    const Part& part = job_.parts[step.part];
    const auto inputs = bind(part.inputs, step.in), outputs = bind(part.outputs, step.out);
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
  for (int64_t number = 1; number <= job.warmup + job.samples; ++number) {
    if (number > 1) std::this_thread::sleep_for(std::chrono::milliseconds(job.cooldown_ms));
    const bool counts = number > job.warmup;
    const double seconds = run.sample(counts);
    report({{"event", "sample"}, {"number", number}, {"of", job.warmup + job.samples},
            {"seconds", seconds}, {"warmup", !counts}});
  }
}

}  // namespace

json measure(const std::string& path, const std::string& folder, const Report& report) {
  Job job = read_job(path);
  report({{"event", "job"}, {"deadline_s", job.deadline_s}});
  const int cpus = use_cpus(job.cpus);
  // By itself an engine counts all cores, also where it may use only some.
  if (job.threads == 0 && job.cpus != "all") job.threads = cpus;
  json memory, clocks;
  bool has_peak = reset_peak();
  const auto end_phase = [&](const char* name) {
    memory[name] = memory_now();
    memory["peak_total"] = std::max(memory["peak_total"], memory[name]["peak"]);
    if (!has_peak) memory[name]["peak"] = nullptr;
    has_peak = reset_peak();
  };
  end_phase("start");

  const mtu_engine* engine = open_engine(job, folder);
  report({{"event", "engine"}, {"name", engine->name}, {"version", engine->version()},
          {"threads", job.threads}, {"mask", mask_now()}, {"machine", machine_now()}});
  Run run(job, engine);
  const auto load_all = [&](const char* event) {
    for (size_t index = 0; index < job.parts.size(); ++index)
      report({{"event", event}, {"part", job.parts[index].name}, {"seconds", run.load(index)}});
  };
  load_all("loaded");
  end_phase("loaded");

  run.fill();
  clocks["before"] = clocks_now();
  run_samples(job, run, report);
  clocks["after"] = clocks_now();
  end_phase("run");

  json psnr_db = json::object();
  for (const auto& [name, tensor] : job.expected)
    psnr_db[name] = psnr(job.tensors->read(tensor), run.at(name), name);
  std::map<std::string, const Tensor*> kept;
  for (const std::string& name : job.keep) kept[name] = &run.at(name);
  if (!job.outputs.empty()) write_tensors(job.outputs, kept);
  if (job.load_again) {
    for (size_t index = 0; index < job.parts.size(); ++index) run.close(index);
    load_all("loaded again");
  }
  return {{"calls", run.calls()}, {"memory", memory}, {"psnr_db", psnr_db}, {"clocks_khz", clocks}};
}

}  // namespace mtu
