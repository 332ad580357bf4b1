import COnnxRuntime
import Foundation
import MTUCore

/// ONNX Runtime, opened at run time: tests alone use it, and the program `mtu` where it is built
/// for them.
final class ONNXLibrary: Sendable {
  /// Throws `MTUError.runtimeMissing`. `path` is that of `libonnxruntime.so`.
  init(_ path: String) throws {
    func missing(_ reason: String) -> MTUError { .runtimeMissing(.onnx, reason: reason) }
    guard let library = dlopen(path, RTLD_NOW | RTLD_LOCAL) else {
      throw missing(String(cString: dlerror()))
    }
    guard let symbol = dlsym(library, "OrtGetApiBase") else { throw missing("no OrtGetApiBase") }
    typealias GetBase = @convention(c) () -> UnsafePointer<OrtApiBase>?
    let base = unsafeBitCast(symbol, to: GetBase.self)()
    guard let api = base?.pointee.GetApi(UInt32(ORT_API_VERSION)) else {
      throw missing("\(path) is older than its header, which has version \(ORT_API_VERSION)")
    }
    self.api = api
    var environment: OpaquePointer?
    try ONNXLibrary.check(
      api, api.pointee.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mtu", &environment))
    self.environment = environment
  }

  nonisolated(unsafe) let api: UnsafePointer<OrtApi>  // never written, lives as the library does
  nonisolated(unsafe) let environment: OpaquePointer?  // ONNX Runtime guards it itself

  /// A session of a file, which its owner releases.
  func session(_ path: String) throws -> OpaquePointer? {
    let functions = api.pointee
    var options: OpaquePointer?
    try check(functions.CreateSessionOptions(&options))
    defer { functions.ReleaseSessionOptions(options) }
    // Activations that int8 weights multiply stay float32: the goldens hold for this.
    let key = "session.qdq_matmulnbits_accuracy_level"
    try check(functions.AddSessionConfigEntry(options, key, "1"))
    var session: OpaquePointer?
    try check(functions.CreateSession(environment, path, options, &session))
    return session
  }

  /// Throws the message of a status.
  func check(_ status: OpaquePointer?) throws {
    try ONNXLibrary.check(api, status)
  }

  private static func check(_ api: UnsafePointer<OrtApi>, _ status: OpaquePointer?) throws {
    guard let status else { return }
    defer { api.pointee.ReleaseStatus(status) }
    let message = api.pointee.GetErrorMessage(status)
    throw ONNXError(reason: message.map { String(cString: $0) } ?? "no message")
  }
}

/// What ONNX Runtime says.
struct ONNXError: Error, LocalizedError {
  let reason: String

  var errorDescription: String? { reason }
}
