import Testing

@testable import MTUCore

@Suite struct RequestTests {
  static let refused: [(String, @Sendable (inout Request) -> Void)] = [
    ("needs a prompt", { $0.prompt = nil }),
    ("needs a picture", { $0.pictures = [:] }),
    ("takes no picture", { $0.pictures["mask"] = $0.pictures["image"] }),
    ("takes no tensor", { $0.tensors["mask"] = Tensor(shape: [1], floats: [0]) }),
    ("takes no number", { $0.numbers["amount"] = 1 }),
    ("no table for 5 steps", { $0.steps = 5 }),
    ("no table for 4 steps at strength 0.5", { $0.strength = 0.5 }),
    ("guidance by text", { $0.guidance.text = 10_001 }),
    ("guidance by image", { $0.guidance.image = .nan }),
    ("the noise must be", { $0.noise = .values([1, 2, 3]) }),
    ("the noise must be", { $0.noise = .values([Float](repeating: .nan, count: 4 * 16 * 24)) }),
    ("given raw and fitted", { $0.tensors["image"] = Tensor.filled([1, 3, 32, 48], 0) }),
    (
      "must be finite float32",
      {
        $0.pictures = [:]
        $0.tensors["image"] = Tensor.filled([1, 3, 32, 47], 0)
      }
    ),
    (
      "an orientation",
      {
        $0.pictures["image"] = RawPicture(width: 1, height: 1, rgba: [0, 0, 0, 0], orientation: 0)
      }
    ),
  ]

  @Test(arguments: refused.indices)
  func refuses(_ index: Int) async throws {
    let (reason, edit) = Self.refused[index]
    let runtime = FakeRuntime()
    var request = goodRequest()
    edit(&request)
    do {
      _ = try await pipeline(runtime).picture(request)
      Issue.record("it was taken: \(reason)")
    } catch let error as MTUError {
      guard case .requestRefused = error else { throw error }
      #expect(error.description.contains(reason), "\(error)")
    }
    #expect(runtime.log.events.isEmpty)
  }

  @Test func ofAnotherTargetOrTask() throws {
    let bundle = try good.get()
    #expect(throws: MTUError.self) { try Pipeline(bundle, runtime: FakeRuntime(.coreml)) }
    #expect(throws: MTUError.requestRefused("the bundle has no task \"t2i\"", legal: ["edit"])) {
      try Pipeline(bundle, runtime: FakeRuntime(), task: "t2i")
    }
  }

  @Test func whatIsNotFiniteEndsIt() async throws {
    struct NaNs: PartRuntime {
      let target = Target.onnx
      let part: String

      func open(_ part: LoadedPart) async throws -> any PartSession {
        Session(part: part, bad: self.part)
      }
    }
    struct Session: PartSession {
      let part: LoadedPart
      let bad: String

      func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor] {
        let number = part.name == bad ? Double.nan : 0
        return [part.outputs[0].name: Tensor.filled(part.outputs[0].shape, number)]
      }

      func close() async {}
    }
    let bundle = try good.get()
    for (part, pass) in [("unet", 1 as Int?), ("vae_decoder", nil)] {
      let pipeline = try Pipeline(bundle, runtime: NaNs(part: part))
      await #expect(throws: MTUError.notFinite(pass: pass)) {
        try await pipeline.picture(goodRequest())
      }
    }
  }

  @Test func cut() throws {
    let pipeline = try pipeline(FakeRuntime())
    #expect(pipeline.cut("a red circle").isEmpty)
    let long = String(repeating: "photo ", count: 80)
    #expect(!pipeline.cut(long).isEmpty && long.hasSuffix(pipeline.cut(long)))
  }

  @Test func ofTheGoldens() async throws {
    let bundle = try good.get()
    let request = try given(try bundle.goldenRequest(task: "edit"))
    #expect(request.tensors["image"]?.shape == [1, 3, 32, 48])
    _ = try await pipeline(FakeRuntime()).picture(request)
    let verdicts = try await pipeline(FakeRuntime()).verify()
    #expect(
      verdicts.map(\.part) == [
        "text_encoder", "vae_encoder", "unet", "vae_decoder", "pipeline", "pipeline",
      ])
    #expect(verdicts.map(\.passed) == [false, false, false, false, false, nil])
  }
}
