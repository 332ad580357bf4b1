// ONNX Runtime's C header, from the folder that MTU_ORT_HEADERS names.
#include <onnxruntime_c_api.h>
