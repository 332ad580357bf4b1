import CoreML
import Foundation
import MTUCore

@testable import MTUCoreML

/// A folder for one test, removed with it.
final class Folder: Sendable {
  let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory
      .appendingPathComponent("mtu-coreml-\(UUID().uuidString)").resolvingSymlinksInPath()
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  var cache: URL { url.appendingPathComponent("compiled") }

  /// What lies in the cache.
  var cached: [String] {
    ((try? FileManager.default.contentsOfDirectory(atPath: cache.path)) ?? []).sorted()
  }

  /// What was asked of the stub for files of this test, by what happened.
  func events(_ kind: CoreMLStub.Event.Kind) -> [CoreMLStub.Event] {
    CoreMLStub.events(below: url.path).filter { $0.kind == kind }
  }

  /// A package of the stub, with one function `main` unless others are named.
  func package(
    _ name: String = "part", functions: [String] = ["main"], inputs: String = floatInput,
    outputs: String = floatOutput, extra: String = ""
  ) throws -> LoadedPart {
    let package = url.appendingPathComponent("\(name).mlpackage")
    try FileManager.default.createDirectory(at: package, withIntermediateDirectories: true)
    let body = #"{"inputs":[\#(inputs)],"outputs":[\#(outputs)]}"#
    let list = functions.map { #""\#($0)":\#(body)"# }.joined(separator: ",")
    let text = #"{"functions":{\#(list)}\#(extra.isEmpty ? "" : "," + extra)}"#
    try Data(text.utf8).write(to: package.appendingPathComponent("stub.json"))
    return try part(package, name)
  }

  func part(
    _ package: URL, _ name: String, entry: String = "main", options: [String: String] = [:],
    inputs: [TensorSpec] = [TensorSpec(name: "x", shape: [1, 2], type: .float32)],
    outputs: [TensorSpec] = [TensorSpec(name: "y", shape: [1, 2], type: .float32)]
  ) throws -> LoadedPart {
    LoadedPart(
      name: name, url: package, sha256: try artefactSHA256(package), entry: entry, inputs: inputs,
      outputs: outputs, bytes: 1, options: options)
  }

  func runtime(units: ComputeUnits? = nil, iOS: Int = 18) -> CoreMLRuntime {
    CoreMLRuntime(
      CoreMLOptions(computeUnits: units, compiledModels: cache), system: SystemVersion(iOS: iOS))
  }
}

let floatInput = #"{"name":"x","shape":[1,2],"weight":1}"#
let floatOutput = #"{"name":"y","shape":[1,2]}"#

extension LoadedPart {
  /// The same part with another entry, options or hash.
  func with(entry: String? = nil, options: [String: String]? = nil, sha256: String? = nil)
    -> LoadedPart
  {
    LoadedPart(
      name: name, url: url, sha256: sha256 ?? self.sha256, entry: entry ?? self.entry,
      inputs: inputs, outputs: outputs, bytes: bytes, options: options ?? self.options)
  }
}

/// What `body` throws, in one line; nil where it throws nothing.
func refusal<Value>(_ body: () async throws -> Value) async -> String? {
  do {
    _ = try await body()
    return nil
  } catch {
    return "\(error)"
  }
}
