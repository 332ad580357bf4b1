// ExecuTorch by the C++ SDK of its pip wheel, with XNNPACK and the optimized and quantized kernels.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"

// The wheel ships the library of the pool without its header: these two functions of it are exported.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Result;
using executorch::runtime::TensorInfo;

std::string message;

struct Part {
  std::unique_ptr<Module> module;
  std::string method;
  size_t input_count = 0, output_count = 0;
};

int fail(int code, const std::string& why) {
  message = why;
  return code;
}

std::string words(Error error) {
  return std::string(executorch::runtime::to_string(error)) + " (" +
         std::to_string(static_cast<unsigned>(error)) + ")";
}

ScalarType scalar(int32_t dtype) {
  return dtype == MTU_FLOAT32 ? ScalarType::Float : ScalarType::Int;
}

int start(const char*, const char*, int32_t threads, const mtu_option*, size_t) {
  executorch::runtime::runtime_init();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (threads > 0 && (pool == nullptr ||
                      !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads))))
    return fail(MTU_NO_ENGINE, "executorch: its thread pool cannot be set");
  return MTU_OK;
}

bool fits(const Result<TensorInfo>& info, const mtu_tensor& tensor) {
  if (!info.ok() || info->scalar_type() != scalar(tensor.dtype)) return false;
  const auto sizes = info->sizes();
  if (sizes.size() != static_cast<size_t>(tensor.rank)) return false;
  for (size_t axis = 0; axis < sizes.size(); ++axis)
    if (sizes[axis] != tensor.shape[axis]) return false;
  return true;
}

int check(Part& part, const mtu_tensor* inputs, const mtu_tensor* outputs) {
  const auto meta = part.module->method_meta(part.method);
  if (!meta.ok()) return fail(MTU_BAD_ARTEFACT, "method " + part.method + ": " + words(meta.error()));
  if (meta->num_inputs() != part.input_count || meta->num_outputs() != part.output_count)
    return fail(MTU_BAD_ARTEFACT, "method " + part.method + " has " +
                                      std::to_string(meta->num_inputs()) + " inputs and " +
                                      std::to_string(meta->num_outputs()) + " outputs, the job " +
                                      std::to_string(part.input_count) + " and " +
                                      std::to_string(part.output_count));
  for (size_t index = 0; index < part.input_count; ++index)
    if (!fits(meta->input_tensor_meta(index), inputs[index]))
      return fail(MTU_BAD_ARTEFACT, std::string("input '") + inputs[index].name +
                                        "' has another shape or type in method " + part.method);
  for (size_t index = 0; index < part.output_count; ++index)
    if (!fits(meta->output_tensor_meta(index), outputs[index]))
      return fail(MTU_BAD_ARTEFACT, std::string("output '") + outputs[index].name +
                                        "' has another shape or type in method " + part.method);
  return MTU_OK;
}

int open(const char* path, const char* entry, const mtu_tensor* inputs, size_t input_count,
         const mtu_tensor* outputs, size_t output_count, void** part) try {
  auto opened = std::make_unique<Part>();
  opened->module = std::make_unique<Module>(path, Module::LoadMode::Mmap);
  opened->method = entry;
  opened->input_count = input_count;
  opened->output_count = output_count;
  const Error error = opened->module->load();
  if (error != Error::Ok)
    return fail(MTU_BAD_ARTEFACT, std::string(path) + " cannot be loaded: " + words(error));
  const int code = check(*opened, inputs, outputs);
  if (code != MTU_OK) return code;
  const Error refused = opened->module->load_method(opened->method);
  if (refused != Error::Ok)
    return fail(MTU_BAD_ARTEFACT, "method " + opened->method + " cannot be loaded: " + words(refused));
  *part = opened.release();
  return MTU_OK;
} catch (const std::exception& error) {
  return fail(MTU_BAD_ARTEFACT, error.what());
}

int run(void* part, const mtu_tensor* inputs, const mtu_tensor* outputs) try {
  auto* opened = static_cast<Part*>(part);
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> values;
  for (size_t index = 0; index < opened->input_count; ++index) {
    const mtu_tensor& in = inputs[index];
    std::vector<executorch::aten::SizesType> sizes(in.shape, in.shape + in.rank);
    tensors.push_back(
        executorch::extension::from_blob(in.data, std::move(sizes), scalar(in.dtype)));
    values.emplace_back(*tensors.back());
  }
  const auto results = opened->module->execute(opened->method, values);
  if (!results.ok()) return fail(MTU_PART_FAILED, words(results.error()));
  if (results->size() != opened->output_count)
    return fail(MTU_PART_FAILED, "the method returned another number of values");
  for (size_t index = 0; index < opened->output_count; ++index) {
    const EValue& value = results->at(index);
    const mtu_tensor& out = outputs[index];
    if (!value.isTensor() || value.toTensor().nbytes() != out.bytes ||
        value.toTensor().scalar_type() != scalar(out.dtype))
      return fail(MTU_PART_FAILED, std::string("output '") + out.name + "' has another form");
    std::memcpy(out.data, value.toTensor().const_data_ptr(), out.bytes);  // it is borrowed
  }
  return MTU_OK;
} catch (const std::exception& error) {
  return fail(MTU_PART_FAILED, error.what());
}

void close(void* part) { delete static_cast<Part*>(part); }

}  // namespace

extern "C" const mtu_engine* mtu_engine_1(void) {
  static const mtu_engine engine = {"executorch", start, [] { return MTU_EXECUTORCH_VERSION; },
                                    open,         run,   close,
                                    [] { return message.c_str(); }};
  return &engine;
}
