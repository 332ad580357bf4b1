import CoreML
import Foundation
import MTUCore
import Testing

@testable import MTUCoreML

private let x = Tensor(shape: [1, 2], floats: [0.25, -0.5])

@Suite struct RuntimeTests {
  @Test func aPartLoadsRunsAndGoes() async throws {
    let folder = try Folder()
    let session = try await folder.runtime().open(try folder.package())
    let result = try await session.run(["x": x])
    #expect(result["y"]?.shape == [1, 2])
    #expect(folder.events(.predict).count == 1)
    #expect(folder.events(.unload).isEmpty)
    await session.close()
    #expect(folder.events(.load).count == 1)
    #expect(folder.events(.unload).count == 1)
    #expect(await refusal { try await session.run(["x": x]) } == "the pipeline is closed")
  }

  @Test func mainIsNotNamedAndOthersAre() async throws {
    let folder = try Folder()
    let part = try folder.package(functions: ["main", "edit"])
    for entry in ["main", "edit"] {
      await (try folder.runtime().open(part.with(entry: entry))).close()
    }
    #expect(folder.events(.load).map(\.function) == [nil, "edit"])
    #expect(folder.events(.compile).count == 1)
  }

  @Test func functionsNeedANewSystem() async throws {
    let folder = try Folder()
    let part = try folder.package(functions: ["main", "edit"]).with(entry: "edit")
    let text = await refusal { try await folder.runtime(iOS: 17).open(part) }
    #expect(
      text
        == "a bundle for coreml cannot run: part holds several tasks as functions, of which edit "
        + "is one, which needs iOS 18 or macOS 15; export one task, or for an older system")
    #expect(folder.events(.compile).isEmpty)
    await (try folder.runtime(iOS: 17).open(part.with(entry: "main"))).close()
  }

  @Test(arguments: [
    ("iOS16", 16, true), ("iOS17", 16, false), ("iOS17", 17, true), ("iOS18", 17, false),
    ("macOS14", 17, true), ("macOS15", 17, false), ("macOS13", 16, true), ("unknown", 16, true),
  ])
  func theDeploymentTargetIsAsked(_ target: String, _ system: Int, _ runs: Bool) async throws {
    let folder = try Folder()
    let part = try folder.package().with(options: ["deployment_target": target])
    let text = await refusal { await (try folder.runtime(iOS: system).open(part)).close() }
    #expect((text == nil) == runs, "\(text ?? "")")
    if !runs { #expect(text?.contains("part was exported for \(target), which needs iOS") == true) }
  }

  @Test func versionsOfMacOS() {
    #expect([13, 14, 15, 26].map { SystemVersion(macOS: $0).iOS } == [16, 17, 18, 26])
  }

  @Test func computeUnitsAreTheManifestsOrTheApps() async throws {
    let folder = try Folder()
    let part = try folder.package()
    let asked = part.with(options: ["compute_unit": "CPU_AND_NE"])
    await (try folder.runtime().open(part)).close()
    await (try folder.runtime().open(asked)).close()
    await (try folder.runtime(units: .cpuOnly).open(asked)).close()
    #expect(folder.events(.load).map(\.units) == [.all, .cpuAndNeuralEngine, .cpuOnly])
    let wrong = part.with(options: ["compute_unit": "TPU"])
    let text = await refusal { try await folder.runtime().open(wrong) }
    #expect(
      text == #"part cannot be loaded: compute_unit "TPU" of the manifest; legal: ALL, CPU_ONLY, "#
        + "CPU_AND_GPU, CPU_AND_NE")
  }

  @Test func whatRunsInTheBackground() {
    #expect(ComputeUnits.allCases.filter(\.runsInBackground) == [.cpuOnly, .cpuAndNeuralEngine])
  }

  @Test func idsReachTheModel() async throws {
    let folder = try Folder()
    let package = try folder.package(
      inputs: #"{"name":"ids","shape":[1,3],"weight":0.001,"type":"int32"}"#)
    let part = try folder.part(
      package.url, "part", inputs: [TensorSpec(name: "ids", shape: [1, 3], type: .int32)])
    let session = try await folder.runtime().open(part)
    let ids = Tensor(shape: [1, 3], ints: [7, 3, 49])
    #expect(try await session.run(["ids": ids])["y"]?.shape == [1, 2])
    let text = await refusal {
      try await session.run(["ids": Tensor(shape: [1, 3], floats: [1, 2, 3])])
    }
    #expect(text == "part cannot be run: input ids is not int32 [1, 3]")
    await session.close()
  }

  @Test func theBlockingWayGivesTheSame() async throws {
    let folder = try Folder()
    let part = try folder.package()
    let session = try await folder.runtime().open(part)
    let expected = try await session.run(["x": x])
    let url = try await CompiledModels(CoreMLOptions(compiledModels: folder.cache)).url(of: part)
    let model = try await MLModel.load(contentsOf: url)
    let features = try MLDictionaryFeatureProvider(
      dictionary: ["x": MLFeatureValue(multiArray: try multiArray(x))])
    let output = try await predictBlocking(
      Handed(model), Handed(features), on: DispatchQueue(label: "test"))
    let array = try #require(output.value.featureValue(for: "y")?.multiArrayValue)
    #expect(try floats(of: array, shape: [1, 2]) == expected["y"])
    #expect(folder.events(.predictBlocking).count == 1)
    await session.close()
  }

  @Test func aLoadThatFailsIsTriedOnceMoreFromThePackage() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""fails":["load"]"#)
    let text = await refusal { try await folder.runtime().open(part) }
    #expect(text == "part cannot be loaded: the stub was told to fail: load")
    #expect(folder.events(.compile).count == 2)
  }

  @Test func aCompiledModelThatIsDamagedIsCompiledAgain() async throws {
    let folder = try Folder()
    let part = try folder.package()
    await (try folder.runtime().open(part)).close()
    let model = folder.cache.appendingPathComponent("\(part.sha256)/model.mlmodelc/stub.json")
    try Data("{}".utf8).write(to: model)
    await (try folder.runtime().open(part)).close()
    #expect(folder.events(.compile).count == 2)
  }

  @Test func failuresNameThePart() async throws {
    let folder = try Folder()
    let compile = try folder.package("first", extra: #""fails":["compile"]"#)
    #expect(
      await refusal { try await folder.runtime().open(compile) }
        == "first cannot be loaded: the stub was told to fail: compile")
    let predict = try folder.package("second", extra: #""fails":["predict"]"#)
    let session = try await folder.runtime().open(predict)
    #expect(
      await refusal { try await session.run(["x": x]) }
        == "second cannot be run: the stub was told to fail: predict")
    #expect(
      await refusal { try await session.run([:]) }
        == "second cannot be run: input x is not float32 [1, 2]")
    await session.close()
  }

  @Test func cancellationPassesUnchanged() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""predictSeconds":600"#)
    let session = try await folder.runtime().open(part)
    let work = Task { try await session.run(["x": x]) }
    while folder.events(.predict).isEmpty { await Task.yield() }
    work.cancel()
    await #expect(throws: CancellationError.self) { try await work.value }
    await session.close()
  }

  @Test func nothingIsLoadedWhenTheCompilingWasCancelled() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""compileSeconds":0.3,"deaf":true"#)
    let work = Task { try await folder.runtime().open(part) }
    try await Task.sleep(for: .milliseconds(50))
    work.cancel()
    await #expect(throws: CancellationError.self) { try await work.value }
    #expect(folder.events(.load).isEmpty)
  }

  @Test func cancellationReachesALoad() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""loadSeconds":600"#)
    let work = Task { try await folder.runtime().open(part) }
    while folder.events(.compile).isEmpty { await Task.yield() }
    work.cancel()
    await #expect(throws: CancellationError.self) { try await work.value }
    #expect(folder.events(.load).isEmpty)
  }
}
