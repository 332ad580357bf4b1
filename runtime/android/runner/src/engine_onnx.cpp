// ONNX Runtime through its C API: the library is opened by name, so that any version from 1.20 on
// serves, and its absence is an error of one line.

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <filesystem>
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
  OrtSession* session = nullptr;
  std::vector<std::string> inputs, outputs;
  std::vector<int32_t> ranks;
};

int fail(int code, const std::string& why) {
  message = why;
  return code;
}

// Whether `status` is an error; its message stays in `message`.
bool failed(OrtStatus* status) {
  if (status == nullptr) return false;
  message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  return true;
}

std::string beside(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    if (entry.path().filename().string().rfind("libonnxruntime.so", 0) == 0)
      paths.push_back(entry.path().string());
  return paths.empty() ? "" : *std::max_element(paths.begin(), paths.end());
}

int start(const char* library, const char* folder, int32_t threads, const mtu_option* options,
          size_t count) {
  const std::string path = *library ? std::string("./") + library : beside(folder);
  if (path.empty())
    return fail(MTU_NO_ENGINE, "no libonnxruntime.so lies beside the runner; name it by library");
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return fail(MTU_NO_ENGINE, std::string("onnxruntime: ") + dlerror());
  const auto base = reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(handle, "OrtGetApiBase"));
  const OrtApiBase* entry = base == nullptr ? nullptr : base();
  if (entry == nullptr)
    return fail(MTU_NO_ENGINE, std::string(library) + " is not ONNX Runtime: no OrtGetApiBase");
  version = entry->GetVersionString();
  api = entry->GetApi(kApi);
  if (api == nullptr)
    return fail(MTU_NO_ENGINE, "onnxruntime " + version + " is too old: 1.20 or newer is needed");
  if (failed(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mtu-bench", &environment)) ||
      failed(api->DisableTelemetryEvents(environment)) ||
      failed(api->CreateSessionOptions(&settings)) ||
      failed(api->SetIntraOpNumThreads(settings, threads)) ||
      failed(api->SetInterOpNumThreads(settings, 1)) ||
      failed(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory)))
    return MTU_NO_ENGINE;
  for (size_t index = 0; index < count; ++index) {
    const std::string key = options[index].key, value = options[index].value;
    if (key == "graph_optimization") {
      if (failed(api->SetSessionGraphOptimizationLevel(
              settings, value == "all" ? ORT_ENABLE_ALL : ORT_DISABLE_ALL)))
        return MTU_NO_ENGINE;
    } else if (key == "arena") {
      if (value == "0" &&
          (failed(api->DisableCpuMemArena(settings)) || failed(api->DisableMemPattern(settings))))
        return MTU_NO_ENGINE;
    } else if (failed(api->AddSessionConfigEntry(settings, key.c_str(), value.c_str()))) {
      return MTU_NO_ENGINE;
    }
  }
  return MTU_OK;
}

std::string words(const std::vector<int64_t>& shape) {
  std::string list = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis)
    list += (axis ? ", " : "") + std::to_string(shape[axis]);
  return list + "]";
}

// Whether a value of the graph has the form that the job says.
bool fits(const OrtTypeInfo* type, const mtu_tensor& tensor, std::string& why) {
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  if (failed(api->CastTypeInfoToTensorInfo(type, &info)) || info == nullptr) {
    why = "is no tensor";
    return false;
  }
  ONNXTensorElementDataType dtype = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  if (failed(api->GetTensorElementType(info, &dtype)) || failed(api->GetDimensionsCount(info, &rank)))
    return false;
  std::vector<int64_t> shape(rank);
  if (failed(api->GetDimensions(info, shape.data(), rank))) return false;
  const auto wanted = tensor.dtype == MTU_FLOAT32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype != wanted) {
    why = "is of another type in the graph";
    return false;
  }
  bool agrees = rank == static_cast<size_t>(tensor.rank);
  for (size_t axis = 0; agrees && axis < rank; ++axis)
    agrees = shape[axis] < 0 || shape[axis] == tensor.shape[axis];
  if (!agrees)
    why = "is " + words(std::vector<int64_t>(tensor.shape, tensor.shape + tensor.rank)) +
          " in the job, " + words(shape) + " in the graph";
  return agrees;
}

// Compares the inputs or outputs of a graph with those of the job.
int check(const OrtSession* session, bool is_input, const mtu_tensor* tensors, size_t count) {
  size_t size = 0;
  OrtAllocator* allocator = nullptr;
  if (failed(api->GetAllocatorWithDefaultOptions(&allocator)) ||
      failed(is_input ? api->SessionGetInputCount(session, &size)
                      : api->SessionGetOutputCount(session, &size)))
    return MTU_BAD_ARTEFACT;
  if (is_input && size != count)
    return fail(MTU_BAD_ARTEFACT, "the graph has " + std::to_string(size) + " inputs, the job " +
                                      std::to_string(count));
  for (size_t wanted = 0; wanted < count; ++wanted) {
    std::string why = "is not in the graph";
    bool is_legal = false;
    for (size_t index = 0; index < size; ++index) {
      char* name = nullptr;
      OrtTypeInfo* type = nullptr;
      if (failed(is_input ? api->SessionGetInputName(session, index, allocator, &name)
                          : api->SessionGetOutputName(session, index, allocator, &name)))
        return MTU_BAD_ARTEFACT;
      const bool is_it = name == std::string(tensors[wanted].name);
      if (failed(api->AllocatorFree(allocator, name))) return MTU_BAD_ARTEFACT;
      if (!is_it) continue;
      if (failed(is_input ? api->SessionGetInputTypeInfo(session, index, &type)
                          : api->SessionGetOutputTypeInfo(session, index, &type)))
        return MTU_BAD_ARTEFACT;
      is_legal = fits(type, tensors[wanted], why);
      api->ReleaseTypeInfo(type);
    }
    if (!is_legal)
      return fail(MTU_BAD_ARTEFACT, std::string(is_input ? "input '" : "output '") +
                                        tensors[wanted].name + "' " + why);
  }
  return MTU_OK;
}

int open(const char* path, const char* entry, const mtu_tensor* inputs, size_t input_count,
         const mtu_tensor* outputs, size_t output_count, void** part) {
  auto* opened = new Part;
  const std::string file = std::string(path) + "/" + entry;
  int code = failed(api->CreateSession(environment, file.c_str(), settings, &opened->session))
                 ? MTU_BAD_ARTEFACT
                 : MTU_OK;
  if (code == MTU_OK) code = check(opened->session, true, inputs, input_count);
  if (code == MTU_OK) code = check(opened->session, false, outputs, output_count);
  for (size_t index = 0; index < input_count; ++index) opened->inputs.push_back(inputs[index].name);
  for (size_t index = 0; index < output_count; ++index)
    opened->outputs.push_back(outputs[index].name);
  if (code == MTU_OK) {
    *part = opened;
    return MTU_OK;
  }
  if (opened->session != nullptr) api->ReleaseSession(opened->session);
  delete opened;
  return code;
}

bool wrap(const mtu_tensor& tensor, OrtValue** value) {
  return !failed(api->CreateTensorWithDataAsOrtValue(
      memory, tensor.data, tensor.bytes, tensor.shape, static_cast<size_t>(tensor.rank),
      tensor.dtype == MTU_FLOAT32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
      value));
}

int run(void* part, const mtu_tensor* inputs, const mtu_tensor* outputs) {
  auto* opened = static_cast<Part*>(part);
  std::vector<OrtValue*> in(opened->inputs.size()), out(opened->outputs.size());
  std::vector<const char*> in_names, out_names;
  bool is_bad = false;
  for (size_t index = 0; index < in.size(); ++index) {
    in_names.push_back(opened->inputs[index].c_str());
    is_bad = is_bad || !wrap(inputs[index], &in[index]);
  }
  for (size_t index = 0; index < out.size(); ++index) {
    out_names.push_back(opened->outputs[index].c_str());
    is_bad = is_bad || !wrap(outputs[index], &out[index]);
  }
  const std::vector<OrtValue*> wrapped = out;
  is_bad = is_bad || failed(api->Run(opened->session, nullptr, in_names.data(), in.data(), in.size(),
                                     out_names.data(), out.size(), out.data()));
  if (!is_bad && out != wrapped) {
    message = "an output was not written where it was asked for";
    is_bad = true;
  }
  for (OrtValue* value : in) api->ReleaseValue(value);
  for (OrtValue* value : wrapped) api->ReleaseValue(value);
  return is_bad ? MTU_PART_FAILED : MTU_OK;
}

void close(void* part) {
  auto* opened = static_cast<Part*>(part);
  api->ReleaseSession(opened->session);
  delete opened;
}

}  // namespace

extern "C" const mtu_engine* mtu_engine_1(void) {
  static const mtu_engine engine = {"onnxruntime", start, [] { return version.c_str(); },
                                    open,          run,   close,
                                    [] { return message.c_str(); }};
  return &engine;
}
