import Testing

@testable import MTUCore

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
