import MTUCommand
import MTUCore

#if canImport(CoreML) && canImport(Darwin)
  import MTUCoreML
#endif
#if canImport(ImageIO)
  import MTUImages
#endif
#if MTU_ORT
  import MTUOnnxTest
#endif

/// What runs bundles of a target in this build of the program.
func runtime(_ target: Target) throws -> any PartRuntime {
  #if canImport(CoreML) && canImport(Darwin)
    if target == .coreml { return CoreMLRuntime() }
  #endif
  #if MTU_ORT
    if target == .onnx { return try ONNXTestRuntime() }
  #endif
  throw MTUError.runtimeMissing(target, reason: "this build of mtu has no runtime for it")
}

/// The system's picture codecs, where there are any.
#if canImport(ImageIO)
  let decoder: Command.Decoder? = { try RawPicture.decode($0) }
#else
  let decoder: Command.Decoder? = nil
#endif
