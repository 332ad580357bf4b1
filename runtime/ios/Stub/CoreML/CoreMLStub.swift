import Foundation

/// What tests see of the stub: everything that was asked of it, in order.
public enum CoreMLStub {
  /// Something that happened.
  public struct Event: Sendable {
    public enum Kind: Sendable {
      case compile, load, unload, predict, predictBlocking
    }

    public let kind: Kind
    /// The package or the compiled model.
    public let path: String
    public var function: String?
    public var units: MLComputeUnits?
  }

  private final class Log: @unchecked Sendable {  // every access holds the lock
    private let lock = NSLock()
    private var events: [Event] = []

    func with<R>(_ body: (inout [Event]) -> R) -> R {
      lock.lock()
      defer { lock.unlock() }
      return body(&events)
    }
  }

  private static let log = Log()

  /// The events whose path begins with `folder`.
  public static func events(below folder: String) -> [Event] {
    log.with { $0.filter { $0.path.hasPrefix(folder) } }
  }

  static func note(_ event: Event) {
    log.with { $0.append(event) }
  }
}

struct StubError: Error, LocalizedError {
  let text: String

  init(_ text: String) {
    self.text = text
  }

  var errorDescription: String? { text }
}

/// `stub.json` of a package: what it computes and how it behaves.
struct StubPackage {
  private struct Document: Decodable {
    var functions: [String: StubFunction]
    var compileSeconds: Double?
    var loadSeconds: Double?
    var predictSeconds: Double?
    /// Which of compile, load and predict fail.
    var fails: [String]?
    /// Whether compiling and loading go on when their task is cancelled, as Core ML's do.
    var deaf: Bool?
    /// Where the process ends itself, as after a crash.
    var dies: String?
  }

  private let document: Document
  var compileSeconds: Double { document.compileSeconds ?? 0 }
  var loadSeconds: Double { document.loadSeconds ?? 0 }
  var predictSeconds: Double { document.predictSeconds ?? 0 }

  init(_ url: URL) throws {
    let file = url.appendingPathComponent("stub.json")
    guard let data = try? Data(contentsOf: file) else {
      throw StubError("\(url.lastPathComponent) is no model")
    }
    document = try JSONDecoder().decode(Document.self, from: data)
  }

  /// `main` where none is named.
  func function(_ name: String?) throws -> StubFunction {
    guard let function = document.functions[name ?? "main"] else {
      throw StubError("no function \(name ?? "main")")
    }
    return function
  }

  func fail(_ what: String) throws {
    if document.fails?.contains(what) == true {
      throw StubError("the stub was told to fail: \(what)")
    }
  }

  /// Takes so long; ends early where the task is cancelled, unless the package is deaf.
  func wait(_ seconds: Double) async throws {
    let time = UInt64(seconds * 1e9)
    if document.deaf == true {
      try await Task.detached { try await Task.sleep(nanoseconds: time) }.value
    } else {
      try await Task.sleep(nanoseconds: time)
    }
  }

  func dieIfAsked(_ what: String) {
    if document.dies == what { kill(getpid(), SIGKILL) }
  }
}

/// A part by the formula of the contract's vectors (`loops.json`).
struct StubFunction: Decodable {
  struct Input: Decodable {
    var name: String
    var shape: [Int]
    var weight: Double
    var type: String?
  }

  struct Output: Decodable {
    var name: String
    var shape: [Int]
    var type: String?
    var padding: Int?
  }

  var inputs: [Input]
  var outputs: [Output]

  func outputs(_ provider: any MLFeatureProvider) throws -> any MLFeatureProvider {
    guard provider.featureNames == Set(inputs.map(\.name)) else {
      throw StubError("inputs \(provider.featureNames.sorted())")
    }
    let values = try inputs.map { input in try read(provider, input) }
    var features: [String: Any] = [:]
    for (index, output) in outputs.enumerated() {
      features[output.name] = MLFeatureValue(multiArray: try array(output, index, values))
    }
    return try MLDictionaryFeatureProvider(dictionary: features)
  }

  private func read(_ provider: any MLFeatureProvider, _ input: Input) throws -> [Double] {
    guard let array = provider.featureValue(for: input.name)?.multiArrayValue else {
      throw StubError("no array \(input.name)")
    }
    let wanted: MLMultiArrayDataType = input.type == "int32" ? .int32 : .float32
    guard array.shape.map(\.intValue) == input.shape, array.dataType == wanted else {
      throw StubError("\(input.name) is \(array.shape) of \(array.dataType)")
    }
    let strides = array.strides.map(\.intValue)
    return array.withUnsafeBytes { bytes in
      places(input.shape, strides).map { place in
        wanted == .int32
          ? Double(bytes.load(fromByteOffset: 4 * place, as: Int32.self))
          : Double(bytes.load(fromByteOffset: 4 * place, as: Float.self))
      }
    }
  }

  private func array(_ output: Output, _ index: Int, _ values: [[Double]]) throws -> MLMultiArray {
    let type: MLMultiArrayDataType =
      switch output.type {
      case nil, "float32": .float32
      case "float16": .float16
      case "double": .double
      case "int32": .int32
      default: throw StubError("type \(output.type ?? "")")
      }
    let array = MLMultiArray(extents: output.shape, type, padding: output.padding ?? 0)
    let numbers = result(output.shape, index, values)
    array.withUnsafeMutableBytes { bytes, strides in
      for (number, place) in zip(numbers, places(output.shape, strides)) {
        let offset = place * type.bytes
        switch type {
        case .float16: bytes.storeBytes(of: Float16(number), toByteOffset: offset, as: Float16.self)
        case .double: bytes.storeBytes(of: number, toByteOffset: offset, as: Double.self)
        case .int32:
          bytes.storeBytes(of: Int32(number * 1000), toByteOffset: offset, as: Int32.self)
        default: bytes.storeBytes(of: Float(number), toByteOffset: offset, as: Float.self)
        }
      }
    }
    return array
  }

  private func result(_ shape: [Int], _ index: Int, _ values: [[Double]]) -> [Double] {
    let batch = shape.first ?? 1
    let count = shape.dropFirst().reduce(1, *)
    var numbers: [Double] = []
    for b in 0..<batch {
      for o in 0..<count {
        var sum = 0.0
        for (k, input) in inputs.enumerated() {
          let inner = input.shape.dropFirst().reduce(1, *)
          let entry = (input.shape.first ?? 1) == 1 ? 0 : b
          var part = 0.0
          for t in stride(from: o, to: max(inner, count), by: count) {
            part += values[k][entry * inner + t % inner] * cos(Double(t + k + 7 * index))
          }
          sum += input.weight * part
        }
        numbers.append(tanh(sum))
      }
    }
    return numbers
  }
}

/// The place of each element of a shape, row by row.
private func places(_ shape: [Int], _ strides: [Int]) -> [Int] {
  var places = [0]
  for (extent, stride) in zip(shape, strides) {
    places = places.flatMap { place in (0..<extent).map { place + $0 * stride } }
  }
  return places
}
