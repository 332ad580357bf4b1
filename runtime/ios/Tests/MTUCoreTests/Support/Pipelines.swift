import Foundation

@testable import MTUCore

let good = Result { try ModelBundle.open(goodBundle) }

/// Passes of four steps: the scheduler asks once more.
let passes = 5

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
