// The names of Apple's CoreML that MTUCoreML calls, over packages of the tests: a package is a
// folder with `stub.json`. Linux builds and tests against this module; Apple's systems never see
// it. Above each declaration stands what it is: `objc:` a selector, `overlay:` a row of the list in
// tools/coreml_stub.py, which checks both against machine-made bindings of Apple's headers.
import Foundation

// objc: MLComputeUnits
public enum MLComputeUnits: Int, Sendable {
  // objc: MLComputeUnitsCPUOnly
  case cpuOnly = 0
  // objc: MLComputeUnitsCPUAndGPU
  case cpuAndGPU = 1
  // objc: MLComputeUnitsAll
  case all = 2
  // objc: MLComputeUnitsCPUAndNeuralEngine
  case cpuAndNeuralEngine = 3
}

// objc: MLModelConfiguration
/// As Apple documents it.
public class MLModelConfiguration {
  // objc: -[MLModelConfiguration init]
  public init() {}

  // objc: -[MLModelConfiguration computeUnits] -[MLModelConfiguration setComputeUnits:]
  public var computeUnits = MLComputeUnits.all

  // objc: -[MLModelConfiguration functionName] -[MLModelConfiguration setFunctionName:]
  @available(macOS 15.0, iOS 18.0, *)
  public var functionName: String? {
    get { function }
    set { function = newValue }
  }

  var function: String?
}

// objc: MLPredictionOptions
/// As Apple documents it.
public class MLPredictionOptions {
  // objc: -[MLPredictionOptions init]
  public init() {}
}

// objc: MLModel
/// As Apple documents it.
public class MLModel {
  let function: StubFunction
  let package: StubPackage
  let url: URL

  init(url: URL, configuration: MLModelConfiguration) throws {
    self.url = url
    package = try StubPackage(url)
    function = try package.function(configuration.function)
    let units = configuration.computeUnits
    CoreMLStub.note(
      .init(kind: .load, path: url.path, function: configuration.function, units: units))
  }

  deinit {
    CoreMLStub.note(.init(kind: .unload, path: url.path))
  }

  // overlay: compileModel(at:)
  public class func compileModel(at modelURL: URL) async throws -> URL {
    let package = try StubPackage(modelURL)
    try package.fail("compile")
    try await package.wait(package.compileSeconds)
    let compiled = FileManager.default.temporaryDirectory
      .appendingPathComponent("\(UUID().uuidString).mlmodelc")
    try FileManager.default.copyItem(at: modelURL, to: compiled)
    CoreMLStub.note(.init(kind: .compile, path: modelURL.path))
    package.dieIfAsked("compile")
    return compiled
  }

  // overlay: load(contentsOf:configuration:)
  public class func load(
    contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()
  ) async throws -> MLModel {
    let package = try StubPackage(url)
    try package.fail("load")
    try await package.wait(package.loadSeconds)
    return try MLModel(url: url, configuration: configuration)
  }

  // objc: -[MLModel predictionFromFeatures:options:error:]
  public func prediction(
    from input: any MLFeatureProvider, options: MLPredictionOptions
  ) throws -> any MLFeatureProvider {
    CoreMLStub.note(.init(kind: .predictBlocking, path: url.path))
    return try predict(input)
  }

  // overlay: prediction(from:options:)
  @available(macOS 14.0, iOS 17.0, *)
  public func prediction(
    from input: any MLFeatureProvider, options: MLPredictionOptions
  ) async throws -> any MLFeatureProvider {
    CoreMLStub.note(.init(kind: .predict, path: url.path))
    try await Task.sleep(nanoseconds: UInt64(package.predictSeconds * 1e9))
    return try predict(input)
  }

  private func predict(_ input: any MLFeatureProvider) throws -> any MLFeatureProvider {
    try package.fail("predict")
    return try function.outputs(input)
  }
}
