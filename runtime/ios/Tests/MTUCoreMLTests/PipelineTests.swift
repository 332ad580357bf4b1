import CoreML
import Foundation
import MTUCore
import Testing

@testable import MTUCoreML

/// How often models are loaded and let go, by what `Pipeline` promises of memory.
@Suite struct PipelineTests {
  private let request = Request(
    prompt: "make the red circle blue",
    tensors: ["image": Tensor(shape: [1, 3, 32, 48], floats: .init(repeating: 0.5, count: 4_608))],
    steps: 4, noise: .seed(7))

  private func pipeline(_ folder: Folder, _ memory: Memory) throws -> Pipeline {
    let bundle = try ModelBundle.open(try CoreMLBundle.make(in: folder.url))
    let runtime = CoreMLRuntime(CoreMLOptions(compiledModels: folder.cache))
    return try Pipeline(bundle, runtime: runtime, options: .init(memory: memory))
  }

  /// The largest number of models that were there at one time.
  private func most(_ folder: Folder) -> Int {
    var (now, most) = (0, 0)
    for event in CoreMLStub.events(below: folder.url.path) {
      if event.kind == .load { now += 1 }
      if event.kind == .unload { now -= 1 }
      most = max(most, now)
    }
    return most
  }

  @Test func leastKeepsOneAndNothingAfterAPicture() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .least)
    for picture in 1...2 {
      _ = try await pipeline.picture(request)
      #expect(folder.events(.load).count == 4 * picture)
      #expect(folder.events(.unload).count == 4 * picture)
    }
    #expect(most(folder) == 1)
    #expect(folder.events(.compile).count == 4)
    #expect(Set(folder.events(.load).map(\.units)) == [.cpuAndNeuralEngine])
    await pipeline.close()
  }

  @Test func unetStays() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .unet)
    for _ in 1...2 { _ = try await pipeline.picture(request) }
    #expect(folder.events(.load).count == 7)
    #expect(folder.events(.unload).count == 6)
    #expect(most(folder) == 2)
    await pipeline.close()
    #expect(folder.events(.unload).count == 7)
  }

  @Test func allAreLoadedOnce() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .all)
    for _ in 1...2 { _ = try await pipeline.picture(request) }
    #expect(folder.events(.load).count == 4)
    #expect(folder.events(.unload).isEmpty)
    await pipeline.trim()
    #expect(folder.events(.unload).count == 4)
    await pipeline.close()
  }

  @Test func theSameSeedIsTheSamePicture() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .least)
    let (first, second) = (
      try await pipeline.picture(request), try await pipeline.picture(request)
    )
    #expect(first.picture == second.picture)
    #expect(first.picture.width == 48 && first.picture.height == 32)
    await pipeline.close()
  }

  @Test func prewarmTellsWhatLoadingCosts() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .least)
    let loads = try await pipeline.prewarm()
    #expect(Set(loads.keys) == ["text_encoder", "vae_encoder", "unet", "vae_decoder"])
    #expect(folder.events(.unload).count == 4)
    await pipeline.close()
  }

  @Test func nothingStaysAfterACancelledPicture() async throws {
    let folder = try Folder()
    let pipeline = try pipeline(folder, .least)
    await #expect(throws: CancellationError.self) {
      for try await event in pipeline.generate(request) {
        if case .pass = event { withUnsafeCurrentTask { $0?.cancel() } }
      }
      throw CancellationError()
    }
    await pipeline.close()
    #expect(folder.events(.load).count == folder.events(.unload).count)
  }
}
