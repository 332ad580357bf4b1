import Foundation

// objc: MLMultiArrayDataType
public enum MLMultiArrayDataType: Int, Sendable {
  // objc: MLMultiArrayDataTypeDouble
  case double = 65600
  // objc: MLMultiArrayDataTypeFloat32
  case float32 = 65568
  // objc: MLMultiArrayDataTypeFloat16
  case float16 = 65552
  // objc: MLMultiArrayDataTypeInt32
  case int32 = 131104
  // objc: MLMultiArrayDataTypeInt8
  @available(macOS 26.0, iOS 26.0, *)
  case int8 = 131080

  var bytes: Int {
    switch self {
    case .double: 8
    case .float32, .int32: 4
    case .float16: 2
    case .int8: 1
    }
  }
}

// objc: MLMultiArray
/// As Apple documents it.
public class MLMultiArray {
  // objc: -[MLMultiArray dataType]
  public let dataType: MLMultiArrayDataType
  // objc: -[MLMultiArray shape]
  public let shape: [NSNumber]
  // objc: -[MLMultiArray strides]
  public let strides: [NSNumber]

  private let storage: UnsafeMutableRawBufferPointer

  // objc: -[MLMultiArray initWithShape:dataType:error:]
  public convenience init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
    self.init(extents: shape.map(\.intValue), dataType, padding: 0)
  }

  /// `padding` elements follow each run of the last axis, and each of the others.
  init(extents: [Int], _ dataType: MLMultiArrayDataType, padding: Int) {
    var strides = [Int](repeating: 1, count: extents.count)
    for axis in strides.indices.dropLast().reversed() {
      strides[axis] = strides[axis + 1] * extents[axis + 1] + padding
    }
    let count = (extents.first ?? 1) * (strides.first ?? 1)
    self.dataType = dataType
    self.shape = extents.map { NSNumber(value: $0) }
    self.strides = strides.map { NSNumber(value: $0) }
    storage = .allocate(byteCount: max(count, 1) * dataType.bytes, alignment: 64)
    storage.initializeMemory(as: UInt8.self, repeating: 0x7b)  // padding is rubbish, not zeros
  }

  /// With strides of the test's own, that need not be legal; zeros.
  init(extents: [Int], strides: [Int], bytes: Int) {
    dataType = .float32
    shape = extents.map { NSNumber(value: $0) }
    self.strides = strides.map { NSNumber(value: $0) }
    storage = .allocate(byteCount: bytes, alignment: 64)
    storage.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit { storage.deallocate() }

  // objc: -[MLMultiArray count]
  public var count: Int { shape.reduce(1) { $0 * $1.intValue } }

  // overlay: withUnsafeBytes(_:)
  public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
    try body(UnsafeRawBufferPointer(storage))
  }

  // overlay: withUnsafeMutableBytes(_:)
  public func withUnsafeMutableBytes<R>(
    _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R
  ) rethrows -> R {
    try body(storage, strides.map(\.intValue))
  }
}
