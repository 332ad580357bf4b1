// ONNX Runtime through its C API: the library is opened by name, so that any version from 1.20 on
// serves, and its absence is an error of one line.

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "engine.h"

namespace {

constexpr uint32_t kApi = 20;  // of ONNX Runtime 1.20; nothing newer is called

const OrtApi* api = nullptr;
OrtEnv* environment = nullptr;
OrtSessionOptions* settings = nullptr;
OrtMemoryInfo* memory = nullptr;
std::string version, message;

struct Part {
  OrtSession* session;
  size_t input_count, output_count;
};

int fail(int code, const std::string& why) {
  message = why;
  return code;
}

// Whether `status` is an error; its message stays in `message`.
bool failed(OrtStatus* status, OrtErrorCode* code = nullptr) {
  if (status == nullptr) return false;
  message = api->GetErrorMessage(status);
  if (code != nullptr) *code = api->GetErrorCode(status);
  api->ReleaseStatus(status);
  return true;
}

bool set(const std::string& key, const std::string& value) {
  if (key == "graph_optimization")
    return !failed(api->SetSessionGraphOptimizationLevel(
        settings, value == "all" ? ORT_ENABLE_ALL : ORT_DISABLE_ALL));
  if (key == "arena" && value == "1") return true;
  if (key == "arena")
    return !failed(api->DisableCpuMemArena(settings)) && !failed(api->DisableMemPattern(settings));
  return !failed(api->AddSessionConfigEntry(settings, key.c_str(), value.c_str()));
}

int start(const char* library, const char* folder, int32_t threads, const char** options) {
  const std::string path = *library ? std::string("./") + library
                                    : std::string(folder) + "/libonnxruntime.so";
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return fail(MTU_NO_ENGINE, std::string("onnxruntime: ") + dlerror());
  const auto base = reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(handle, "OrtGetApiBase"));
  const OrtApiBase* entry = base == nullptr ? nullptr : base();
  if (entry == nullptr)
    return fail(MTU_NO_ENGINE, path + " is not ONNX Runtime: no OrtGetApiBase");
  version = entry->GetVersionString();
  api = entry->GetApi(kApi);
  if (api == nullptr)
    return fail(MTU_NO_ENGINE, "onnxruntime " + version + " is too old: 1.20 or newer is needed");
  bool is_set = !failed(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mtu-bench", &environment)) &&
                !failed(api->DisableTelemetryEvents(environment)) &&
                !failed(api->CreateSessionOptions(&settings)) &&
                !failed(api->SetIntraOpNumThreads(settings, threads)) &&
                !failed(api->SetInterOpNumThreads(settings, 1)) &&
                !failed(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  if (!is_set) return MTU_NO_ENGINE;
  for (; *options != nullptr; options += 2)
    if (!set(options[0], options[1])) return MTU_BAD_JOB;
  return MTU_OK;
}

int open(const char* path, const char* entry, size_t input_count, size_t output_count,
         void** part) {
  const std::string file = std::string(path) + "/" + entry;
  OrtSession* session = nullptr;
  if (failed(api->CreateSession(environment, file.c_str(), settings, &session)))
    return MTU_BAD_ARTEFACT;
  *part = new Part{session, input_count, output_count};
  return MTU_OK;
}

void close(void* part) {
  api->ReleaseSession(static_cast<Part*>(part)->session);
  delete static_cast<Part*>(part);
}

ONNXTensorElementDataType element(const mtu_tensor& tensor) {
  return tensor.dtype == MTU_FLOAT32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                     : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
}

// Copies a result of the engine, where its type and shape are those of `tensor`.
bool copy(OrtValue* value, const mtu_tensor& tensor) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  void* data = nullptr;
  message = std::string("output '") + tensor.name + "' has another type or shape in the graph";
  if (value == nullptr || failed(api->GetTensorTypeAndShape(value, &info))) return false;
  bool is_it = !failed(api->GetTensorElementType(info, &type)) && type == element(tensor) &&
               !failed(api->GetDimensionsCount(info, &rank)) &&
               rank == static_cast<size_t>(tensor.rank);
  std::vector<int64_t> shape(rank);
  is_it = is_it && !failed(api->GetDimensions(info, shape.data(), rank)) &&
          std::equal(shape.begin(), shape.end(), tensor.shape) &&
          !failed(api->GetTensorMutableData(value, &data));
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (is_it) std::memcpy(tensor.data, data, tensor.bytes);
  return is_it;
}

int run(void* part, const mtu_tensor* inputs, const mtu_tensor* outputs) {
  auto* opened = static_cast<Part*>(part);
  std::vector<OrtValue*> in(opened->input_count), out(opened->output_count);
  std::vector<const char*> in_names, out_names;
  OrtErrorCode reason = ORT_OK;
  bool is_run = true;
  for (size_t index = 0; index < in.size(); ++index) {
    const mtu_tensor& tensor = inputs[index];
    in_names.push_back(tensor.name);
    is_run = is_run && !failed(api->CreateTensorWithDataAsOrtValue(
                           memory, tensor.data, tensor.bytes, tensor.shape,
                           static_cast<size_t>(tensor.rank), element(tensor), &in[index]));
  }
  for (size_t index = 0; index < out.size(); ++index) out_names.push_back(outputs[index].name);
  is_run = is_run && !failed(api->Run(opened->session, nullptr, in_names.data(), in.data(),
                                      in.size(), out_names.data(), out.size(), out.data()),
                             &reason);
  int code = is_run ? MTU_OK : reason == ORT_INVALID_ARGUMENT ? MTU_BAD_ARTEFACT : MTU_PART_FAILED;
  for (size_t index = 0; code == MTU_OK && index < out.size(); ++index)
    if (!copy(out[index], outputs[index])) code = MTU_BAD_ARTEFACT;
  for (OrtValue* value : in) api->ReleaseValue(value);
  for (OrtValue* value : out) api->ReleaseValue(value);
  return code;
}

}  // namespace

extern "C" const mtu_engine* mtu_engine_1(void) {
  static const mtu_engine engine = {
      "onnxruntime", start, [] { return version.c_str(); }, open, run, close,
      [] { return message.c_str(); }};
  return &engine;
}
