import COnnxRuntime
import Foundation
import MTUCore

/// Bundles for ONNX on this machine, by the library that MTU_ORT_LIBRARY names.
public struct ONNXTestRuntime: PartRuntime {
  public let target = Target.onnx
  private let library: ONNXLibrary

  /// Throws `MTUError.runtimeMissing`.
  public init() throws {
    guard let path = ProcessInfo.processInfo.environment["MTU_ORT_LIBRARY"] else {
      throw MTUError.runtimeMissing(.onnx, reason: "MTU_ORT_LIBRARY names no library")
    }
    library = try ONNXLibrary(path)
  }

  public func open(_ part: LoadedPart) async throws -> any PartSession {
    try ONNXTestSession(library, part)
  }
}

/// A loaded entry of a part in ONNX Runtime.
actor ONNXTestSession: PartSession {
  private let library: ONNXLibrary
  private let part: LoadedPart
  private var session: OpaquePointer?

  init(_ library: ONNXLibrary, _ part: LoadedPart) throws {
    self.library = library
    self.part = part
    session = try library.session(part.url.appendingPathComponent(part.entry).path)
  }

  func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
    try library.run(session, part, inputs)
  }

  func close() {
    if let session { library.api.pointee.ReleaseSession(session) }
    session = nil
  }
}

extension ONNXLibrary {
  /// The outputs of a part.
  fileprivate func run(
    _ session: OpaquePointer?, _ part: LoadedPart, _ inputs: [String: Tensor]
  ) throws -> [String: Tensor] {
    let api = self.api.pointee
    var values: [OpaquePointer?] = []
    var buffers: [UnsafeMutableRawBufferPointer] = []
    var outputs = [OpaquePointer?](repeating: nil, count: part.outputs.count)
    defer {
      for value in values + outputs where value != nil { api.ReleaseValue(value) }
      for buffer in buffers { buffer.deallocate() }
    }
    for spec in part.inputs {
      guard let tensor = inputs[spec.name] else { throw ONNXError(reason: "no input \(spec.name)") }
      let buffer = tensor.copied
      buffers.append(buffer)
      values.append(try value(tensor, buffer))
    }
    let inputNames = part.inputs.map { strdup($0.name) }
    let outputNames = part.outputs.map { strdup($0.name) }
    defer { for name in inputNames + outputNames { free(name) } }
    try check(
      api.Run(
        session, nil, inputNames.map { UnsafePointer($0) }, values, values.count,
        outputNames.map { UnsafePointer($0) }, outputs.count, &outputs))
    var results: [String: Tensor] = [:]
    for (spec, value) in zip(part.outputs, outputs) { results[spec.name] = try tensor(value, spec) }
    return results
  }

  private func value(
    _ tensor: Tensor, _ buffer: UnsafeMutableRawBufferPointer
  ) throws -> OpaquePointer? {
    let api = self.api.pointee
    var memory: OpaquePointer?
    try check(api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory))
    defer { api.ReleaseMemoryInfo(memory) }
    let isFloat = tensor.elementType == .float32
    let type = isFloat ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
    var value: OpaquePointer?
    try check(
      api.CreateTensorWithDataAsOrtValue(
        memory, buffer.baseAddress, buffer.count, tensor.shape.map { Int64($0) },
        tensor.shape.count, type, &value))
    return value
  }

  private func tensor(_ value: OpaquePointer?, _ spec: TensorSpec) throws -> Tensor {
    let api = self.api.pointee
    var info: OpaquePointer?
    try check(api.GetTensorTypeAndShape(value, &info))
    defer { api.ReleaseTensorTypeAndShapeInfo(info) }
    var count = 0
    try check(api.GetTensorShapeElementCount(info, &count))
    guard count == Tensor.count(spec.shape) else {
      throw ONNXError(reason: "output \(spec.name) has \(count) numbers, not \(spec.shape)")
    }
    var data: UnsafeMutableRawPointer?
    try check(api.GetTensorMutableData(value, &data))
    guard let data else { throw ONNXError(reason: "output \(spec.name) has no data") }
    let floats = UnsafeRawBufferPointer(start: data, count: 4 * count).bindMemory(to: Float.self)
    return Tensor(shape: spec.shape, floats: Array(floats))
  }
}

extension Tensor {
  /// A copy of the numbers, to be deallocated by the caller.
  fileprivate var copied: UnsafeMutableRawBufferPointer {
    let buffer = UnsafeMutableRawBufferPointer.allocate(
      byteCount: 4 * Tensor.count(shape), alignment: 16)
    switch values {
    case .float32(let floats): floats.withUnsafeBytes { buffer.copyMemory(from: $0) }
    case .int32(let ints): ints.withUnsafeBytes { buffer.copyMemory(from: $0) }
    }
    return buffer
  }
}
