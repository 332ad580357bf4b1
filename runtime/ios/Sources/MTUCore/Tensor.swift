/// An array, row-major, of float32 or int32.
public struct Tensor: Sendable, Equatable {
  /// The elements, in one list.
  public enum Values: Sendable, Equatable {
    case float32([Float])
    /// Ids of tokens.
    case int32([Int32])
  }

  /// Extents, the outermost first.
  public let shape: [Int]
  /// As many numbers as `shape` says.
  public let values: Values

  /// A float32 array; `floats` has as many numbers as `shape` says.
  public init(shape: [Int], floats: [Float]) {
    precondition(floats.count == Tensor.count(shape), "\(floats.count) numbers for \(shape)")
    self.shape = shape
    values = .float32(floats)
  }

  /// An int32 array; `ints` has as many numbers as `shape` says.
  public init(shape: [Int], ints: [Int32]) {
    precondition(ints.count == Tensor.count(shape), "\(ints.count) numbers for \(shape)")
    self.shape = shape
    values = .int32(ints)
  }

  /// The number of elements of a shape: 1 of an empty one.
  public static func count(_ shape: [Int]) -> Int {
    shape.reduce(1, *)
  }

  /// Type of the numbers.
  public var elementType: ElementType {
    switch values {
    case .float32: .float32
    case .int32: .int32
    }
  }

  /// The numbers of a float32 array; none of an int32 array.
  public var floats: [Float] {
    if case .float32(let floats) = values { floats } else { [] }
  }

  /// The numbers of an int32 array; none of a float32 array.
  public var ints: [Int32] {
    if case .int32(let ints) = values { ints } else { [] }
  }

  /// Whether no number is NaN or infinite.
  public var isFinite: Bool {
    floats.allSatisfy(\.isFinite)
  }
}

/// Type of an array's elements.
public enum ElementType: String, Sendable {
  case float32
  case int32
}
