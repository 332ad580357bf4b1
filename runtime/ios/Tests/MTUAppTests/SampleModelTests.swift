import Foundation
import MTUCore
import Testing

@testable import MTUApp

/// Parts whose outputs are zeros, and that may wait until they are cancelled.
private struct Zeros: PartRuntime {
  var waits = false
  var target: Target { .onnx }

  func open(_ part: LoadedPart) async throws -> any PartSession {
    ZeroSession(part: part, waits: waits && part.name == "unet")
  }
}

private actor ZeroSession: PartSession {
  let part: LoadedPart
  let waits: Bool

  init(part: LoadedPart, waits: Bool) {
    self.part = part
    self.waits = waits
  }

  func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor] {
    if waits { try await Task.sleep(for: .seconds(600)) }
    return part.outputs.reduce(into: [:]) { outputs, spec in
      outputs[spec.name] = Tensor(
        shape: spec.shape, floats: .init(repeating: 0, count: Tensor.count(spec.shape)))
    }
  }

  func close() {}
}

@MainActor
@Suite struct SampleModelTests {
  private let documents = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("../../../testdata").standardizedFileURL
  private let receipts = FileManager.default.temporaryDirectory
    .appendingPathComponent("mtu-sample-\(UUID().uuidString)")

  private func model(waits: Bool = false, runsInBackground: Bool = true) throws -> SampleModel {
    try FileManager.default.createDirectory(at: receipts, withIntermediateDirectories: true)
    let model = SampleModel(
      documents: documents, receipts: receipts, runtime: Zeros(waits: waits),
      runsInBackground: runsInBackground)
    model.refresh()
    return model
  }

  private func opened(waits: Bool = false, runsInBackground: Bool = true) async throws
    -> SampleModel
  {
    let model = try model(waits: waits, runsInBackground: runsInBackground)
    model.open(try #require(model.bundles.first))
    await model.finish()
    model.prompt = "a red circle"
    model.pictures["image"] = RawPicture(
      width: 2, height: 2, rgba: .init(repeating: 255, count: 16))
    return model
  }

  @Test func bundlesAreFoldersWithAManifest() throws {
    let model = try model()
    #expect(model.bundles.map(\.lastPathComponent) == ["edit-onnx-int8"])
    #expect(model.activity == .idle && model.taskInfo == nil)
  }

  @Test func aBundleIsOpenedOnceByHashThenByReceipt() async throws {
    let model = try await opened()
    #expect(model.message == nil && model.task == "edit")
    let receipt = receipts.appendingPathComponent("edit-onnx-int8.receipt")
    #expect(FileManager.default.fileExists(atPath: receipt.path))
    model.open(try #require(model.bundles.first))
    await model.finish()
    #expect(model.message == nil && model.bundle != nil)
  }

  @Test func whatIsNoBundleIsOneLine() async throws {
    let model = try model()
    model.open(receipts.deletingLastPathComponent().appendingPathComponent("absent"))
    #expect(model.activity == .opening && model.isBusy)
    await model.finish()
    #expect(model.activity == .idle && model.bundle == nil)
    #expect(model.message?.hasPrefix("rule 1: ") == true, "\(model.message ?? "")")
  }

  @Test func aPictureIsDrawn() async throws {
    let model = try await opened()
    var seen: [SampleModel.Activity] = []
    model.onChange = { seen.append(model.activity) }
    model.draw()
    await model.finish()
    #expect(model.picture?.width == 48, "\(model.message ?? "")")
    #expect(seen.first == .drawing(pass: 0, of: 0) && seen.last == .idle)
    model.onChange = nil
  }

  @Test func aChosenTaskIsShown() async throws {
    let model = try await opened()
    var count = 0
    model.onChange = { count += 1 }
    model.task = "edit"
    #expect(count == 1 && model.taskInfo?.name == "edit")
    model.onChange = nil
  }

  @Test func picturesOfAnotherTaskAreNotSent() async throws {
    let model = try await opened()
    model.pictures["mask"] = model.pictures["image"]
    model.draw()
    await model.finish()
    #expect(model.picture?.width == 48, "\(model.message ?? "")")
  }

  @Test func cancelEndsTheHashesOfABundle() async throws {
    let model = try model()
    model.open(try #require(model.bundles.first))
    model.cancel()
    await model.finish()
    #expect(model.message == "cancelled" && model.bundle == nil && !model.isBusy)
  }

  @Test func aRequestThatIsRefusedIsOneLine() async throws {
    let model = try await opened()
    model.pictures = [:]
    model.draw()
    await model.finish()
    #expect(model.picture == nil && model.message != nil && model.activity == .idle)
  }

  @Test func theCheckSaysWhatIsBelowItsFloor() async throws {
    let model = try await opened()
    model.check()
    await model.finish()
    #expect(model.message?.hasPrefix("below the floor: ") == true, "\(model.message ?? "")")
  }

  @Test func cancelEndsAPicture() async throws {
    let model = try await opened(waits: true)
    model.draw()
    model.cancel()
    await model.finish()
    #expect(model.message == "cancelled" && model.picture == nil && !model.isBusy)
  }

  @Test func theBackgroundEndsWorkOfTheGPUAlone() async throws {
    let gpu = try await opened(waits: true, runsInBackground: false)
    gpu.draw()
    gpu.enterBackground()
    await gpu.finish()
    #expect(gpu.message == "cancelled")
    let engine = try await opened(waits: true, runsInBackground: true)
    engine.draw()
    engine.enterBackground()
    #expect(engine.isBusy)
    engine.cancel()
    await engine.finish()
  }

  @Test func oneThingAtATime() async throws {
    let model = try await opened(waits: true)
    model.draw()
    model.check()
    #expect(model.activity == .drawing(pass: 0, of: 0))
    model.cancel()
    await model.finish()
  }
}
