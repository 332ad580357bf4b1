// The native side of org.pytorch.executorch.Native: the C++ SDK of ExecuTorch's wheel behind JNI.
// Kotlin sees to threads, lifetimes and the forms of inputs; here every error becomes a code or a
// Java exception.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <jni.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

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
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::MethodMeta;
using executorch::runtime::Program;
using executorch::runtime::Result;
using executorch::runtime::Tag;

enum Kind { kNone, kTensor, kBool, kInt, kDouble, kString };

// A Java exception waits: nothing but clean-up may follow.
struct Pending {};

void raise(JNIEnv* env, const char* name, const std::string& why) {
  if (env->ExceptionCheck()) return;
  if (jclass type = env->FindClass(name)) env->ThrowNew(type, why.c_str());
}

// What ExecuTorch last complained of on this thread: more than its codes tell.
thread_local std::string complaint;

void keep_complaint(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t,
                    const char* message, size_t length) {
  if (level != kError && level != kFatal) return;
  complaint.assign(message, length);
  for (char& letter : complaint)
    if (letter < ' ' || letter > '~') letter = '?';  // Java takes no broken UTF-8
  if (level == kFatal) std::fprintf(stderr, "executorch: %s\n", complaint.c_str());
}

[[noreturn]] void refuse(JNIEnv* env, Error error, const std::string& what) {
  const std::string why = complaint.empty() ? what : what + ": " + complaint;
  jclass type = env->FindClass("org/pytorch/executorch/ExecutorchRuntimeException");
  const char* form = "(ILjava/lang/String;)Ljava/lang/RuntimeException;";
  jmethodID maker =
      type == nullptr ? nullptr : env->GetStaticMethodID(type, "makeExecutorchException", form);
  jstring details = maker == nullptr ? nullptr : env->NewStringUTF(why.c_str());
  if (details != nullptr) {
    jobject thrown =
        env->CallStaticObjectMethod(type, maker, static_cast<jint>(error), details);
    if (thrown != nullptr) env->Throw(static_cast<jthrowable>(thrown));
  }
  throw Pending();
}

template <typename Value>
Value take(JNIEnv* env, Result<Value> result, const std::string& what) {
  if (!result.ok()) refuse(env, result.error(), what);
  return std::move(*result);
}

// `call` without C++ exceptions; `otherwise` is what Java gets beside its own exception.
template <typename Call, typename Value>
Value guarded(JNIEnv* env, Value otherwise, Call call) {
  complaint.clear();
  try {
    return call();
  } catch (const Pending&) {
  } catch (const std::bad_alloc&) {
    raise(env, "java/lang/OutOfMemoryError", "native memory");
  } catch (const std::exception& error) {
    raise(env, "java/lang/IllegalStateException", error.what());
  }
  return otherwise;
}

template <typename Value>
Value needed(Value value) {
  if (value == nullptr) throw Pending();
  return value;
}

Module& module_of(jlong handle) { return *reinterpret_cast<Module*>(handle); }

std::string text(JNIEnv* env, jbyteArray bytes) {
  std::string words(static_cast<size_t>(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(words.size()),
                          reinterpret_cast<jbyte*>(words.data()));
  return words;
}

jbyteArray bytes_of(JNIEnv* env, std::string_view words) {
  const auto size = static_cast<jsize>(words.size());
  jbyteArray bytes = needed(env->NewByteArray(size));
  env->SetByteArrayRegion(bytes, 0, size, reinterpret_cast<const jbyte*>(words.data()));
  return bytes;
}

jlongArray longs_of(JNIEnv* env, const std::vector<jlong>& numbers) {
  const auto size = static_cast<jsize>(numbers.size());
  jlongArray array = needed(env->NewLongArray(size));
  env->SetLongArrayRegion(array, 0, size, numbers.data());
  return array;
}

jobjectArray strings_of(JNIEnv* env, const std::vector<std::string>& words) {
  jclass type = needed(env->FindClass("java/lang/String"));
  jobjectArray array =
      needed(env->NewObjectArray(static_cast<jsize>(words.size()), type, nullptr));
  for (size_t index = 0; index < words.size(); ++index) {
    jstring word = needed(env->NewStringUTF(words[index].c_str()));
    env->SetObjectArrayElement(array, static_cast<jsize>(index), word);
    env->DeleteLocalRef(word);
  }
  return array;
}

MethodMeta meta_of(JNIEnv* env, jlong handle, jbyteArray method) {
  const std::string name = text(env, method);
  return take(env, module_of(handle).method_meta(name), "method '" + name + "'");
}

// Kind, and type and extents of a tensor, of the input `index`.
std::vector<jlong> form_of(JNIEnv* env, const MethodMeta& meta, size_t index) {
  const std::string what = "input " + std::to_string(index);
  switch (take(env, meta.input_tag(index), what)) {
    case Tag::Tensor: {
      const auto info = take(env, meta.input_tensor_meta(index), what);
      std::vector<jlong> form = {kTensor, static_cast<jlong>(info.scalar_type())};
      for (const int32_t extent : info.sizes()) form.push_back(extent);
      return form;
    }
    case Tag::Bool:
      return {kBool};
    case Tag::Int:
      return {kInt};
    case Tag::Double:
      return {kDouble};
    case Tag::String:
      return {kString};
    default:
      return {kNone};
  }
}

// What Java has given for one run.
class Inputs {
 public:
  Inputs(JNIEnv* env, jintArray kinds, jlongArray numbers, jobjectArray buffers,
         jobjectArray shapes) {
    const jsize count = env->GetArrayLength(kinds);
    std::vector<jint> kind(static_cast<size_t>(count));
    std::vector<jlong> number(kind.size());
    env->GetIntArrayRegion(kinds, 0, count, kind.data());
    env->GetLongArrayRegion(numbers, 0, count, number.data());
    for (jsize index = 0; index < count; ++index) {
      const auto at = static_cast<size_t>(index);
      if (kind[at] == kTensor) {
        add(env, number[at], env->GetObjectArrayElement(buffers, index),
            static_cast<jlongArray>(env->GetObjectArrayElement(shapes, index)));
      } else if (kind[at] == kBool) {
        values.emplace_back(number[at] != 0);
      } else if (kind[at] == kInt) {
        values.emplace_back(static_cast<int64_t>(number[at]));
      } else if (kind[at] == kDouble) {
        double value = 0;
        std::memcpy(&value, &number[at], sizeof value);
        values.emplace_back(value);
      } else {
        values.emplace_back();
      }
    }
  }

  std::vector<EValue> values;

 private:
  void add(JNIEnv* env, jlong type, jobject buffer, jlongArray shape) {
    std::vector<jlong> extents(static_cast<size_t>(env->GetArrayLength(shape)));
    env->GetLongArrayRegion(shape, 0, static_cast<jsize>(extents.size()), extents.data());
    std::vector<executorch::aten::SizesType> sizes;
    for (const jlong extent : extents) {
      if (extent > INT32_MAX) refuse(env, Error::InvalidArgument, "an extent above 2^31");
      sizes.push_back(static_cast<executorch::aten::SizesType>(extent));
    }
    void* data = env->GetDirectBufferAddress(buffer);
    if (data == nullptr) refuse(env, Error::InvalidArgument, "a buffer that is not direct");
    tensors_.push_back(executorch::extension::from_blob(data, std::move(sizes),
                                                        static_cast<ScalarType>(type)));
    values.emplace_back(*tensors_.back());
    env->DeleteLocalRef(buffer);
    env->DeleteLocalRef(shape);
  }

  std::vector<executorch::extension::TensorPtr> tensors_;
};

// Tells Java of one output after the other.
class Outputs {
 public:
  Outputs(JNIEnv* env, jobject target) : env_(env), target_(target) {
    jclass type = env->GetObjectClass(target);
    tensor_ = needed(env->GetMethodID(type, "tensor", "(I[JLjava/nio/ByteBuffer;)V"));
    number_ = needed(env->GetMethodID(type, "number", "(IJ)V"));
    text_ = needed(env->GetMethodID(type, "text", "([B)V"));
  }

  void add(const EValue& value) {
    if (value.isTensor()) {
      add(value.toTensor());
    } else if (value.isString()) {
      env_->CallVoidMethod(target_, text_, bytes_of(env_, value.toString()));
    } else if (value.isBool()) {
      number(kBool, value.toBool() ? 1 : 0);
    } else if (value.isInt()) {
      number(kInt, value.toInt());
    } else if (value.isDouble()) {
      const double content = value.toDouble();
      jlong bits = 0;
      std::memcpy(&bits, &content, sizeof bits);
      number(kDouble, bits);
    } else if (value.isNone()) {
      number(kNone, 0);
    } else {
      refuse(env_, Error::NotSupported, "an output that is a list");
    }
    if (env_->ExceptionCheck()) throw Pending();
  }

 private:
  void add(const executorch::aten::Tensor& tensor) {
    std::vector<jlong> shape;
    for (const auto extent : tensor.sizes()) shape.push_back(extent);
    static char empty = 0;
    void* data = tensor.nbytes() == 0 ? &empty : tensor.mutable_data_ptr();
    if (data == nullptr) refuse(env_, Error::InvalidState, "an output without memory");
    jobject buffer = needed(env_->NewDirectByteBuffer(data, static_cast<jlong>(tensor.nbytes())));
    env_->CallVoidMethod(target_, tensor_, static_cast<jint>(tensor.scalar_type()),
                         longs_of(env_, shape), buffer);
  }
  void number(Kind kind, int64_t bits) {
    env_->CallVoidMethod(target_, number_, static_cast<jint>(kind), static_cast<jlong>(bits));
  }

  JNIEnv* env_;
  jobject target_;
  jmethodID tensor_, number_, text_;
};

}  // namespace

#define NATIVE(type, name) \
  extern "C" JNIEXPORT type JNICALL Java_org_pytorch_executorch_Native_##name

NATIVE(jlong, open)(JNIEnv* env, jclass, jbyteArray path, jint mode) {
  return guarded(env, jlong{0}, [&] {
    static const bool is_set = executorch::runtime::register_pal(
        executorch::runtime::PalImpl::create(keep_complaint, __FILE__));
    if (!is_set) refuse(env, Error::Internal, "the log");
    executorch::runtime::runtime_init();
    const std::string file = text(env, path);
    auto module = std::make_unique<Module>(file, static_cast<Module::LoadMode>(mode));
    const Error error = module->load(Program::Verification::InternalConsistency);
    if (error != Error::Ok) refuse(env, error, file);
    return reinterpret_cast<jlong>(module.release());
  });
}

NATIVE(void, close)(JNIEnv*, jclass, jlong handle) { delete &module_of(handle); }

NATIVE(jobjectArray, methods)(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, jobjectArray{nullptr}, [&] {
    const auto names = take(env, module_of(handle).method_names(), "the names of methods");
    return strings_of(env, {names.begin(), names.end()});
  });
}

NATIVE(jobjectArray, backends)(JNIEnv* env, jclass, jlong handle, jbyteArray method) {
  return guarded(env, jobjectArray{nullptr}, [&] {
    const MethodMeta meta = meta_of(env, handle, method);
    std::set<std::string> names;
    for (size_t index = 0; index < meta.num_backends(); ++index)
      names.insert(take(env, meta.get_backend_name(index), "a backend's name"));
    return strings_of(env, {names.begin(), names.end()});
  });
}

NATIVE(jobjectArray, inputs)(JNIEnv* env, jclass, jlong handle, jbyteArray method) {
  return guarded(env, jobjectArray{nullptr}, [&] {
    const MethodMeta meta = meta_of(env, handle, method);
    const auto count = static_cast<jsize>(meta.num_inputs());
    jobjectArray forms = needed(env->NewObjectArray(count, needed(env->FindClass("[J")), nullptr));
    for (jsize index = 0; index < count; ++index) {
      jlongArray form = longs_of(env, form_of(env, meta, static_cast<size_t>(index)));
      env->SetObjectArrayElement(forms, index, form);
      env->DeleteLocalRef(form);
    }
    return forms;
  });
}

NATIVE(void, load)(JNIEnv* env, jclass, jlong handle, jbyteArray method) {
  guarded(env, 0, [&] {
    const std::string name = text(env, method);
    const Error error = module_of(handle).load_method(name);
    if (error != Error::Ok) refuse(env, error, "method '" + name + "' cannot be loaded");
    return 0;
  });
}

NATIVE(void, run)
(JNIEnv* env, jclass, jlong handle, jbyteArray method, jintArray kinds, jlongArray numbers,
 jobjectArray buffers, jobjectArray shapes, jobject outputs) {
  guarded(env, 0, [&] {
    const std::string name = text(env, method);
    const Inputs inputs(env, kinds, numbers, buffers, shapes);
    const auto results =
        take(env, module_of(handle).execute(name, inputs.values), "method '" + name + "' failed");
    Outputs target(env, outputs);
    for (const EValue& value : results) target.add(value);
    return 0;
  });
}

NATIVE(jboolean, threads)(JNIEnv* env, jclass, jint count) {
  return guarded(env, jboolean{JNI_FALSE}, [&] {
    auto* pool = executorch::extension::threadpool::get_threadpool();
    const auto threads = static_cast<uint32_t>(count);
    const bool is_set = pool != nullptr && pool->_unsafe_reset_threadpool(threads);
    return is_set ? jboolean{JNI_TRUE} : jboolean{JNI_FALSE};
  });
}

NATIVE(jstring, version)(JNIEnv* env, jclass) { return env->NewStringUTF(MTU_EXECUTORCH_VERSION); }
