// ExecuTorch by the C++ SDK of its pip wheel, with XNNPACK and the optimized and quantized kernels.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"

// The wheel has the pool's library without its header; it exports these two functions.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;

std::string message;

struct Part {
  Module module;
  std::string method;
  size_t input_count, output_count;
};

int fail(int code, const std::string& why) {
  message = why;
  return code;
}

int fail(int code, const std::string& what, Error error) {
  return fail(code, what + ": " + executorch::runtime::to_string(error));
}

ScalarType scalar(const mtu_tensor& tensor) {
  return tensor.dtype == MTU_FLOAT32 ? ScalarType::Float : ScalarType::Int;
}

int start(const char*, const char*, int32_t threads, const char**) {
  executorch::runtime::runtime_init();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  const auto count = static_cast<uint32_t>(threads);
  if (threads > 0 && (pool == nullptr || !pool->_unsafe_reset_threadpool(count)))
    return fail(MTU_NO_ENGINE, "executorch: its thread pool cannot be set");
  return MTU_OK;
}

int open(const char* path, const char* entry, size_t input_count, size_t output_count,
         void** part) {
  std::unique_ptr<Part> opened(
      new Part{Module(path, Module::LoadMode::Mmap), entry, input_count, output_count});
  const std::string method = "method " + opened->method;
  const Error error = opened->module.load();
  if (error != Error::Ok) return fail(MTU_BAD_ARTEFACT, path, error);
  const auto meta = opened->module.method_meta(entry);
  if (!meta.ok()) return fail(MTU_BAD_ARTEFACT, method, meta.error());
  if (meta->num_inputs() != input_count || meta->num_outputs() != output_count)
    return fail(MTU_BAD_ARTEFACT, method + " has " + std::to_string(meta->num_inputs()) +
                                      " inputs and " + std::to_string(meta->num_outputs()) +
                                      " outputs");
  const Error refusal = opened->module.load_method(entry);
  if (refusal != Error::Ok) return fail(MTU_BAD_ARTEFACT, method, refusal);
  *part = opened.release();
  return MTU_OK;
}

bool fits(const Tensor& value, const mtu_tensor& tensor) {
  const auto sizes = value.sizes();
  return value.scalar_type() == scalar(tensor) &&
         sizes.size() == static_cast<size_t>(tensor.rank) &&
         std::equal(sizes.begin(), sizes.end(), tensor.shape);
}

int run(void* part, const mtu_tensor* inputs, const mtu_tensor* outputs) {
  auto* opened = static_cast<Part*>(part);
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> values;
  for (size_t index = 0; index < opened->input_count; ++index) {
    const mtu_tensor& in = inputs[index];
    std::vector<executorch::aten::SizesType> sizes(in.shape, in.shape + in.rank);
    tensors.push_back(executorch::extension::from_blob(in.data, std::move(sizes), scalar(in)));
    values.emplace_back(*tensors.back());
  }
  const auto results = opened->module.execute(opened->method, values);
  if (!results.ok()) {
    const Error error = results.error();
    const bool is_form = error == Error::InvalidArgument || error == Error::NotSupported;
    return fail(is_form ? MTU_BAD_ARTEFACT : MTU_PART_FAILED, "method " + opened->method, error);
  }
  for (size_t index = 0; index < opened->output_count; ++index) {
    const mtu_tensor& out = outputs[index];
    const bool is_tensor = index < results->size() && results->at(index).isTensor();
    if (!is_tensor || !fits(results->at(index).toTensor(), out))
      return fail(MTU_BAD_ARTEFACT, std::string("output '") + out.name +
                                        "' has another type or shape in the method");
    const Tensor tensor = results->at(index).toTensor();  // borrowed until the next run
    std::memcpy(out.data, tensor.const_data_ptr(), out.bytes);
  }
  return MTU_OK;
}

void close(void* part) { delete static_cast<Part*>(part); }

}  // namespace

extern "C" const mtu_engine* mtu_engine_1(void) {
  static const mtu_engine engine = {
      "executorch", start, [] { return MTU_EXECUTORCH_VERSION; }, open, run, close,
      [] { return message.c_str(); }};
  return &engine;
}
