#if canImport(CoreML)
  import CoreML
  import Foundation
  import MTUCore

  /// A tensor as Core ML takes it: float32, ids as int32.
  func multiArray(_ tensor: Tensor) throws -> MLMultiArray {
    let shape = tensor.shape.map { NSNumber(value: $0) }
    switch tensor.values {
    case .float32(let floats):
      let array = try MLMultiArray(shape: shape, dataType: .float32)
      write(floats, to: array, tensor.shape)
      return array
    case .int32(let ints):
      let array = try MLMultiArray(shape: shape, dataType: .int32)
      write(ints, to: array, tensor.shape)
      return array
    }
  }

  private func write<Number: BitwiseCopyable>(
    _ numbers: [Number], to array: MLMultiArray, _ shape: [Int]
  ) {
    array.withUnsafeMutableBytes { bytes, strides in
      let places = Places(shape, strides)
      for run in 0..<places.runs {
        let begin = places.begin(of: run)
        for element in 0..<places.length {
          bytes.storeBytes(
            of: numbers[run * places.length + element],
            toByteOffset: (begin + element * places.step) * MemoryLayout<Number>.stride,
            as: Number.self)
        }
      }
    }
  }

  /// An array of Core ML as float32, read by its strides: it may be padded, and of float16.
  ///
  /// Throws `Broken` for another shape, strides that lead out of it, and elements that are no
  /// floating-point numbers.
  func floats(of array: MLMultiArray, shape: [Int]) throws -> Tensor {
    let extents = array.shape.map(\.intValue)
    try require(extents == shape, "it has shape \(extents), not \(shape)")
    let strides = array.strides.map(\.intValue)
    let isLegal = strides.count == shape.count && strides.allSatisfy { $0 >= 0 }
    try require(isLegal, "it has strides \(strides) for shape \(shape)")
    let places = Places(shape, strides)
    let type = array.dataType
    let numbers: [Float]
    if type == .float32 {
      numbers = array.withUnsafeBytes {
        read($0, places, 4) { $0.loadUnaligned(fromByteOffset: $1, as: Float.self) }
      }
    } else if type == .float16 {
      numbers = array.withUnsafeBytes {
        read($0, places, 2) { float(half: $0.loadUnaligned(fromByteOffset: $1, as: UInt16.self)) }
      }
    } else if type == .double {
      numbers = array.withUnsafeBytes {
        read($0, places, 8) { Float($0.loadUnaligned(fromByteOffset: $1, as: Double.self)) }
      }
    } else {
      throw Broken(reason: "its elements are of type \(type.rawValue), not floating-point")
    }
    return Tensor(shape: shape, floats: numbers)
  }

  private func read(
    _ bytes: UnsafeRawBufferPointer, _ places: Places, _ size: Int,
    _ load: (UnsafeRawBufferPointer, Int) -> Float
  ) -> [Float] {
    [Float](unsafeUninitializedCapacity: places.runs * places.length) { numbers, count in
      for run in 0..<places.runs {
        let begin = places.begin(of: run)
        for element in 0..<places.length {
          numbers[count] = load(bytes, (begin + element * places.step) * size)
          count += 1
        }
      }
    }
  }

  /// Where the elements of an array lie, run by run of its last axis.
  private struct Places {
    let runs: Int
    let length: Int
    let step: Int
    private let outer: [(extent: Int, stride: Int)]

    init(_ shape: [Int], _ strides: [Int]) {
      length = shape.last ?? 1
      step = strides.last ?? 1
      outer = Array(zip(shape, strides).dropLast()).map { ($0, $1) }
      runs = outer.reduce(1) { $0 * $1.extent }
    }

    func begin(of run: Int) -> Int {
      var rest = run
      var place = 0
      for axis in outer.reversed() {
        place += rest % axis.extent * axis.stride
        rest /= axis.extent
      }
      return place
    }
  }

  /// The float32 of a float16's bits. Swift's Float16 is not there on Intel Macs.
  func float(half bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10) & 0x1f
    let fraction = UInt32(bits & 0x3ff)
    switch exponent {
    case 0:
      let magnitude = Float(fraction) * 0x1p-24
      return sign == 0 ? magnitude : -magnitude
    case 0x1f:
      return Float(bitPattern: sign | 0x7f80_0000 | fraction << 13)
    default:
      return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
    }
  }
#endif
