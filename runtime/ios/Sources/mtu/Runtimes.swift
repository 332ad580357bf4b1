import MTUCommand
import MTUCore

#if MTU_ORT
  import MTUOnnxTest
#endif

/// What runs bundles of a target in this build of the program.
func runtime(_ target: Target) throws -> any PartRuntime {
  #if MTU_ORT
    if target == .onnx { return try ONNXTestRuntime() }
  #endif
  throw MTUError.runtimeMissing(target, reason: "this build of mtu has no runtime for it")
}

/// The system's picture codecs, where there are any.
let decoder: Command.Decoder? = nil
