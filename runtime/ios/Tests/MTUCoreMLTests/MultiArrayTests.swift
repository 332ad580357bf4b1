import Foundation
import MTUCore
import Testing

@testable import CoreML
@testable import MTUCoreML

@Suite struct MultiArrayTests {
  @Test func everyFloat16IsRead() {
    for bits in UInt16.min...UInt16.max {
      let expected = Float(Float16(bitPattern: bits))
      let actual = float(half: bits)
      #expect(actual == expected || (actual.isNaN && expected.isNaN), "\(bits)")
      #expect(actual.isNaN || actual.sign == expected.sign, "\(bits)")
    }
  }

  @Test func tensorsKeepTheirOrder() throws {
    let numbers = (0..<24).map { Float($0) }
    let array = try multiArray(Tensor(shape: [2, 3, 4], floats: numbers))
    #expect(array.dataType == .float32)
    #expect(try floats(of: array, shape: [2, 3, 4]).floats == numbers)
  }

  @Test func idsAreInt32() throws {
    let array = try multiArray(Tensor(shape: [1, 3], ints: [7, -1, 49_407]))
    #expect(array.dataType == .int32)
    let values = array.withUnsafeBytes { Array($0.bindMemory(to: Int32.self)) }
    #expect(values == [7, -1, 49_407])
  }

  @Test func anotherShapeIsRefused() async throws {
    let array = try multiArray(Tensor(shape: [1, 4], floats: [1, 2, 3, 4]))
    let text = await refusal { try floats(of: array, shape: [2, 2]) }
    #expect(text?.contains("it has shape [1, 4], not [2, 2]") == true)
  }

  @Test(arguments: [[-2, 1], [2, -1], [2], []])
  func stridesThatLeadOutAreRefused(_ strides: [Int]) async {
    let array = MLMultiArray(extents: [2, 2], strides: strides, bytes: 16)
    let text = await refusal { try floats(of: array, shape: [2, 2]) }
    #expect(text?.contains("it has strides \(strides) for shape [2, 2]") == true)
  }

  @Test func oneNumberMayStandForAll() throws {
    let array = MLMultiArray(extents: [2, 3], strides: [0, 0], bytes: 4)
    #expect(try floats(of: array, shape: [2, 3]).floats == [0, 0, 0, 0, 0, 0])
  }

  /// Shapes, padding and types of outputs, through a whole session.
  @Test(arguments: ["float32", "float16", "double"], [0, 1, 5])
  func outputsAreReadByTheirStrides(_ type: String, _ padding: Int) async throws {
    let folder = try Folder()
    let shape = [1, 3, 2, 5]
    let output = #"{"name":"y","shape":\#(shape),"type":"\#(type)","padding":\#(padding)}"#
    let package = try folder.package(outputs: output)
    let part = try folder.part(
      package.url, "part", outputs: [TensorSpec(name: "y", shape: shape, type: .float32)])
    let session = try await folder.runtime().open(part)
    let result = try await session.run(["x": Tensor(shape: [1, 2], floats: [0.5, -0.25])])
    let y = try #require(result["y"])
    #expect(y.shape == shape)
    let inputs = [0.5, -0.25]
    for (o, number) in y.floats.enumerated() {
      // the formula of the contract: t runs over the output, as the input is shorter
      let expected = tanh(inputs[o % 2] * cos(Double(o)))
      #expect(abs(Double(number) - expected) < (type == "float16" ? 0.001 : 1e-6), "\(o)")
    }
    await session.close()
  }

  @Test func wholeNumbersAreNoOutput() async throws {
    let folder = try Folder()
    let part = try folder.package(outputs: #"{"name":"y","shape":[1,2],"type":"int32"}"#)
    let session = try await folder.runtime().open(part)
    let text = await refusal {
      try await session.run(["x": Tensor(shape: [1, 2], floats: [1, 2])])
    }
    #expect(text?.hasPrefix("part cannot be run: output y: its elements are of type") == true)
    await session.close()
  }
}
