import Testing

@testable import MTUCore

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
