import Foundation
import Testing

@testable import MTUCore

let good = Result { try ModelBundle.open(goodBundle) }

/// Passes of four steps: the scheduler asks once more.
private let passes = 5

/// A request that the good bundle takes: four steps, three branches.
func goodRequest() -> Request {
  let pixels = [UInt8](repeating: 200, count: 4 * 10 * 8)
  return Request(
    prompt: "a red circle", pictures: ["image": RawPicture(width: 10, height: 8, rgba: pixels)])
}

func pipeline(
  _ runtime: FakeRuntime, _ memory: Memory = .least, latents: Bool = false
) throws -> Pipeline {
  let options = Pipeline.Options(memory: memory, latents: latents)
  return try Pipeline(try good.get(), runtime: runtime, options: options)
}

struct Failed: Error {}

@Suite struct SessionTests {
  static let parts = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
  static let events = parts.flatMap { ["open \($0)", "run \($0)"] }

  /// What stays loaded after a picture, and how many parts were loaded together at most.
  static func kept(_ memory: Memory) -> (loaded: [String], most: Int) {
    switch memory {
    case .least: ([], 1)
    case .unet: (["unet"], 2)
    case .all: (parts, 4)
    }
  }

  @Test(arguments: Memory.allCases)
  func ofPictures(_ memory: Memory) async throws {
    let runtime = FakeRuntime()
    let pipeline = try pipeline(runtime, memory)
    #expect(runtime.log.events.isEmpty)
    for _ in 0..<2 {
      _ = try await pipeline.picture(goodRequest())
      #expect(runtime.log.loaded == Self.kept(memory).loaded)
      #expect(runtime.log.mostLoaded <= Self.kept(memory).most)
    }
    let loads = Self.parts.map { runtime.log.count("open \($0)") }
    let expected: [Memory: [Int]] = [
      .least: [2, 2, 2, 2], .unet: [2, 1, 2, 2], .all: [1, 1, 1, 1],
    ]
    #expect(loads == expected[memory])
    #expect(runtime.log.count("run unet") == 2 * passes * 3)
    #expect(runtime.log.count("run text_encoder") == 2)
    await pipeline.close()
    #expect(runtime.log.loaded.isEmpty)
  }

  @Test(arguments: Memory.allCases, 0..<15)
  func cancelledInAPass(_ memory: Memory, _ number: Int) async throws {
    let runtime = FakeRuntime { event, count in
      if event == "run unet", count == number { cancelThisTask() }
    }
    let pipeline = try pipeline(runtime, memory)
    await #expect(throws: CancellationError.self) {
      try await Task { try await pipeline.picture(goodRequest()) }.value
    }
    // The run in which it happened has ended; nothing was submitted after it.
    #expect(runtime.log.count("run unet") == number + 1)
    #expect(runtime.log.count("run vae_decoder") == 0)
    let kept = Self.kept(memory).loaded.filter { $0 != "vae_decoder" }
    #expect(runtime.log.loaded == kept)
    await pipeline.close()
    #expect(runtime.log.loaded.isEmpty)
  }

  @Test(arguments: Memory.allCases, events)
  func failedInAPart(_ memory: Memory, _ event: String) async throws {
    let runtime = FakeRuntime { asked, _ in if asked == event { throw Failed() } }
    let pipeline = try pipeline(runtime, memory)
    let part = String(event.split(separator: " ")[1])
    let phase: MTUError.Phase = event.hasPrefix("open") ? .open : .run
    await #expect(throws: MTUError.partFailed(part: part, phase: phase, reason: "Failed()")) {
      try await pipeline.picture(goodRequest())
    }
    #expect(runtime.log.loaded.count <= Self.kept(memory).loaded.count)
    if memory == .least { #expect(runtime.log.loaded.isEmpty) }
    await pipeline.close()
    #expect(runtime.log.loaded.isEmpty)
  }

  @Test func errorsOfTheRuntimePassUnchanged() async throws {
    let expected = MTUError.outOfMemory(part: "unet", needs: 5)
    let runtime = FakeRuntime { event, _ in if event == "open unet" { throw expected } }
    let pipeline = try pipeline(runtime)
    await #expect(throws: expected) { try await pipeline.picture(goodRequest()) }
  }

  /// A runtime that ends early with an error of its own after a cancellation.
  @Test func whatACancelledRunThrowsIsACancellation() async throws {
    let runtime = FakeRuntime { event, _ in
      if event == "run unet" {
        cancelThisTask()
        throw Failed()
      }
    }
    let pipeline = try pipeline(runtime)
    await #expect(throws: CancellationError.self) {
      try await Task { try await pipeline.picture(goodRequest()) }.value
    }
  }

  @Test(arguments: Memory.allCases)
  func ofPrewarming(_ memory: Memory) async throws {
    let runtime = FakeRuntime()
    let pipeline = try pipeline(runtime, memory)
    let times = try await pipeline.prewarm()
    #expect(times.keys.sorted() == Self.parts)
    #expect(runtime.log.loaded == Self.kept(memory).loaded)
    #expect(!runtime.log.events.contains { $0.hasPrefix("run") })
  }

  @Test func trimLetsGoOfAll() async throws {
    let runtime = FakeRuntime()
    let pipeline = try pipeline(runtime, .all)
    _ = try await pipeline.picture(goodRequest())
    await pipeline.trim()
    #expect(runtime.log.loaded.isEmpty)
    _ = try await pipeline.picture(goodRequest())
    #expect(runtime.log.loaded == Self.parts)
  }

  @Test func trimInAPassKeepsWhatRuns() async throws {
    let gate = Gate()
    let runtime = FakeRuntime { event, number in
      if event == "run unet", number == 5 { await gate.pause() }
    }
    let pipeline = try pipeline(runtime, .all)
    async let finished = pipeline.picture(goodRequest())
    await gate.reached()
    await pipeline.trim()
    #expect(runtime.log.loaded == ["unet"])
    await gate.open()
    _ = try await finished
    #expect(runtime.log.count("open unet") == 1)
  }
}

/// Lets a test act while a run is under way.
actor Gate {
  private var isReached = false
  private var isOpen = false
  private var waiters: [CheckedContinuation<Void, Never>] = []

  func pause() async {
    isReached = true
    wake()
    while !isOpen { await wait() }
  }

  func reached() async {
    while !isReached { await wait() }
  }

  func open() {
    isOpen = true
    wake()
  }

  private func wait() async {
    await withCheckedContinuation { waiters.append($0) }
  }

  private func wake() {
    for waiter in waiters { waiter.resume() }
    waiters = []
  }
}

@Suite struct TurnTests {
  @Test func oneAtATimeInTheOrderOfAsking() async throws {
    let gate = Gate()
    let runtime = FakeRuntime { event, number in
      if event == "run text_encoder", number == 0 { await gate.pause() }
    }
    let pipeline = try pipeline(runtime)
    async let first = pipeline.picture(goodRequest())
    await gate.reached()
    async let second = pipeline.picture(goodRequest())
    async let third = pipeline.verify(loop: false)
    await gate.open()
    _ = try await (first, second)
    _ = try await third
    #expect(runtime.log.mostLoaded == 1)
    #expect(runtime.log.loaded.isEmpty)
  }

  @Test func whoWaitsAndIsCancelledLeaves() async throws {
    let gate = Gate()
    let runtime = FakeRuntime { event, number in
      if event == "run text_encoder", number == 0 { await gate.pause() }
    }
    let pipeline = try pipeline(runtime)
    async let first = pipeline.picture(goodRequest())
    await gate.reached()
    let second = Task { try await pipeline.picture(goodRequest()) }
    second.cancel()
    await #expect(throws: CancellationError.self) { try await second.value }
    await gate.open()
    _ = try await first
    _ = try await pipeline.picture(goodRequest())
    #expect(runtime.log.count("run text_encoder") == 2)
  }

  @Test func closeEndsWhatRuns() async throws {
    let gate = Gate()
    let runtime = FakeRuntime { event, number in
      if event == "run unet", number == 2 { await gate.pause() }
    }
    let pipeline = try pipeline(runtime, .all)
    let picture = Task { try await pipeline.picture(goodRequest()) }
    await gate.reached()
    let closing = Task { await pipeline.close() }
    while await !pipeline.isClosed { await Task.yield() }
    #expect(runtime.log.loaded.contains("unet"))
    await gate.open()
    await closing.value
    await #expect(throws: MTUError.closed) { try await picture.value }
    #expect(runtime.log.loaded.isEmpty)
    #expect(runtime.log.count("run unet") == 3)
    await #expect(throws: MTUError.closed) { try await pipeline.picture(goodRequest()) }
    await #expect(throws: MTUError.closed) { try await pipeline.prewarm() }
    await pipeline.close()
  }
}

@Suite struct StreamTests {
  @Test func theLastEventIsThePicture() async throws {
    let pipeline = try pipeline(FakeRuntime(), latents: true)
    var last: Event?
    for try await event in pipeline.generate(goodRequest()) { last = event }
    guard case .finished(let finished) = last else {
      Issue.record("the last event is \(String(describing: last))")
      return
    }
    #expect(finished.picture.width == 48 && finished.picture.height == 32)
    #expect(finished.seed == 0)
    #expect(finished.timings.run.keys.sorted() == SessionTests.parts)
  }

  @Test func everyPassIsTold() async throws {
    let events = Box<[String]>([])
    let pipeline = try pipeline(FakeRuntime(), latents: true)
    _ = try await pipeline.picture(goodRequest()) { event in
      switch event {
      case .loading(let part): events.change { $0.append(part) }
      case .pass(let number, let of, _, let latent):
        events.change { $0.append("\(number) of \(of), \(latent?.shape ?? [])") }
      case .finished: events.change { $0.append("finished") }
      }
    }
    var expected = ["text_encoder", "vae_encoder", "unet"]
    for number in 1...passes { expected.append("\(number) of \(passes), [1, 4, 4, 6]") }
    expected.append("vae_decoder")
    #expect(events.value == expected)
  }

  @Test func aRefusedRequestIsAnError() async throws {
    let stream = try pipeline(FakeRuntime()).generate(Request())
    await #expect(throws: MTUError.self) { for try await _ in stream {} }
  }

  @Test func whoDropsTheStreamCancels() async throws {
    let gate = Gate()
    let runtime = FakeRuntime { event, number in
      if event == "run unet", number == 1 { await gate.pause() }
    }
    let pipeline = try pipeline(runtime)
    var stream: AsyncThrowingStream<Event, any Error>? = pipeline.generate(goodRequest())
    _ = stream
    await gate.reached()
    stream = nil
    await gate.open()
    // The next in the queue begins when the cancelled one has let go of its parts.
    _ = try await pipeline.prewarm()
    #expect(runtime.log.count("run unet") == 2)
    #expect(runtime.log.loaded.isEmpty)
  }

  @Test func whoseTaskIsCancelledCancels() async throws {
    let runtime = FakeRuntime { event, number in
      if event == "run unet", number == 3 { try await Task.sleep(for: .seconds(3600)) }
    }
    let pipeline = try pipeline(runtime)
    let reader = Task {
      for try await event in pipeline.generate(goodRequest()) {
        if case .pass(number: 1, _, _, _) = event { cancelThisTask() }
      }
    }
    try await reader.value
    _ = try await pipeline.prewarm()
    #expect(runtime.log.loaded.isEmpty)
    #expect(runtime.log.count("run vae_decoder") == 0)
  }
}

/// A value that several tasks change.
final class Box<Value: Sendable>: @unchecked Sendable {  // guarded by its lock
  private let lock = NSLock()
  private var inner: Value

  init(_ value: Value) {
    inner = value
  }

  var value: Value { lock.withLock { inner } }

  func change(_ work: (inout Value) -> Void) {
    lock.withLock { work(&inner) }
  }
}

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
