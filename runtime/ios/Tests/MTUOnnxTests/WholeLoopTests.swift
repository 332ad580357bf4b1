import Foundation
import MTUCore
import Testing

@testable import MTUOnnxTest

@Suite struct WholeLoopTests {
  private let testdata = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in
    url.deletingLastPathComponent()
  }.appendingPathComponent("testdata")

  private var bundle: URL { testdata.appendingPathComponent("edit-onnx-int8") }

  /// The shared request: `image` and `noise` of expected.safetensors give its picture.
  @Test func thePictureIsPythons() async throws {
    let path = testdata.appendingPathComponent("expected.safetensors").path
    let size = try Data(contentsOf: URL(fileURLWithPath: path)).count
    let expected = try Safetensors(path, size: size, "expected.safetensors")
    let text = try Data(contentsOf: testdata.appendingPathComponent("request.json"))
    let asked = try JSON.parse(Array(text), "request.json").object
    let request = Request(
      prompt: asked?["prompt"]?.string, tensors: ["image": try expected.tensor("image")],
      steps: asked?["steps"]?.integer, noise: .values(try expected.tensor("noise").floats))
    let options = Pipeline.Options(memory: .all)
    let pipeline = try Pipeline(
      try ModelBundle.open(bundle), runtime: try ONNXTestRuntime(), options: options)
    let finished = try await pipeline.picture(request)
    let reference = RGBImage(try expected.tensor("picture"))
    let differing = zip(finished.picture.pixels, reference.pixels).filter { $0 != $1 }.count
    print("\(differing) of \(reference.pixels.count) bytes differ from Python's picture")
    #expect(differing == 0)
    var seeded = request
    seeded.noise = .seed(7)
    #expect(try await pipeline.picture(seeded).picture == finished.picture)
    await pipeline.close()
  }

  @Test func everythingReachesItsFloor() async throws {
    let pipeline = try Pipeline(try ModelBundle.open(bundle), runtime: try ONNXTestRuntime())
    let verdicts = try await pipeline.verify()
    #expect(verdicts.count == 6)
    for verdict in verdicts {
      print("\(verdict.part) \(verdict.stage): \(verdict.psnrDB) dB, floor \(verdict.floorDB)")
      #expect(verdict.passed != false)
    }
  }

  @Test func aDamagedPartIsNamed() async throws {
    let spec = TensorSpec(name: "x", shape: [1], type: .float32)
    let part = LoadedPart(
      name: "unet", url: bundle, sha256: "", entry: "manifest.json", inputs: [spec],
      outputs: [spec], bytes: 0)
    let runtime = try ONNXTestRuntime()
    await #expect(throws: ONNXError.self) { try await runtime.open(part) }
  }
}
