import Foundation

// Arithmetic of tensors as the contract rounds it. All but `concatenated` and `psnr` take float32.

extension Tensor {
  package static func filled(_ shape: [Int], _ number: Double) -> Tensor {
    Tensor(shape: shape, floats: [Float](repeating: Float(number), count: count(shape)))
  }

  /// One float32 product, the number rounded first.
  package func scaled(_ number: Double) -> Tensor {
    let factor = Float(number)
    return Tensor(shape: shape, floats: floats.map { $0 * factor })
  }

  /// One float32 quotient, the number rounded first.
  package func divided(_ number: Double) -> Tensor {
    let divisor = Float(number)
    return Tensor(shape: shape, floats: floats.map { $0 / divisor })
  }

  /// The sum of products of tensors of one shape, formed in float64 in this order and rounded once.
  package static func weightedSum(_ terms: [(factor: Double, tensor: Tensor)]) -> Tensor {
    let shape = terms[0].tensor.shape
    var sums = [Double](repeating: 0, count: count(shape))
    for (factor, tensor) in terms { tensor.add(to: &sums, factor) }
    return Tensor(shape: shape, floats: sums.map { Float($0) })
  }

  /// Adds so many times its numbers to as many sums.
  func add(to sums: inout [Double], _ factor: Double) {
    let floats = self.floats
    for i in sums.indices { sums[i] += factor * Double(floats[i]) }
  }

  /// Tensors of one type joined along an axis, in which alone their shapes differ.
  package static func concatenated(_ tensors: [Tensor], axis: Int) -> Tensor {
    guard tensors.count > 1, let first = tensors.first else { return tensors[0] }
    var shape = first.shape
    shape[axis] = tensors.reduce(0) { $0 + $1.shape[axis] }
    let rows = count(Array(shape[..<axis]))
    switch first.values {
    case .float32:
      return Tensor(shape: shape, floats: joined(tensors.map { ($0.floats, $0.shape) }, rows, axis))
    case .int32:
      return Tensor(shape: shape, ints: joined(tensors.map { ($0.ints, $0.shape) }, rows, axis))
    }
  }

  private static func joined<Number>(
    _ tensors: [(numbers: [Number], shape: [Int])], _ rows: Int, _ axis: Int
  ) -> [Number] {
    var numbers: [Number] = []
    numbers.reserveCapacity(tensors.reduce(0) { $0 + $1.numbers.count })
    for row in 0..<rows {
      for tensor in tensors {
        let length = count(Array(tensor.shape[axis...]))
        numbers += tensor.numbers[row * length..<(row + 1) * length]
      }
    }
    return numbers
  }

  /// One entry of the first axis, [1, ...].
  package func entry(_ index: Int) -> Tensor {
    let inner = [1] + shape.dropFirst()
    let range = index * Tensor.count(inner)..<(index + 1) * Tensor.count(inner)
    switch values {
    case .float32(let floats): return Tensor(shape: inner, floats: Array(floats[range]))
    case .int32(let ints): return Tensor(shape: inner, ints: Array(ints[range]))
    }
  }
}

/// 20·log10(max|reference| / rmse) in dB: infinity of equal tensors, -infinity of another shape
/// and of what is not finite. Both are float32.
public func psnr(_ reference: Tensor, _ actual: Tensor) -> Double {
  guard reference.shape == actual.shape, actual.isFinite else { return -.infinity }
  var peak = 0.0
  var sum = 0.0
  for (expected, number) in zip(reference.floats, actual.floats) {
    peak = max(peak, abs(Double(expected)))
    let error = Double(expected) - Double(number)
    sum += error * error
  }
  if sum == 0 { return .infinity }
  let rmse = (sum / Double(reference.floats.count)).squareRoot()
  return peak > 0 ? 20 * log10(peak / rmse) : -.infinity
}
