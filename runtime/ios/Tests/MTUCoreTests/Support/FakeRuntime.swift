import Foundation

@testable import MTUCore

/// What a fake runtime is asked for, in order.
final class Log: @unchecked Sendable {  // guarded by its lock
  private let lock = NSLock()
  private var open: [String] = []
  private var words: [String] = []
  private var most = 0

  func opened(_ part: String) {
    lock.withLock {
      open.append(part)
      words.append("open \(part)")
      most = max(most, open.count)
    }
  }

  func closed(_ part: String) {
    lock.withLock {
      if let index = open.firstIndex(of: part) { open.remove(at: index) }
      words.append("close \(part)")
    }
  }

  func ran(_ part: String) {
    lock.withLock { words.append("run \(part)") }
  }

  /// Parts that are loaded now.
  var loaded: [String] { lock.withLock { open.sorted() } }
  /// Parts that were loaded at the same time.
  var mostLoaded: Int { lock.withLock { most } }
  var events: [String] { lock.withLock { words } }

  func count(_ event: String) -> Int {
    events.filter { $0 == event }.count
  }
}

/// Gives zeros for every output; `hook` comes before each loading and each run.
struct FakeRuntime: PartRuntime {
  typealias Hook = @Sendable (_ event: String, _ number: Int) async throws -> Void

  let target: Target
  let log = Log()
  let hook: Hook

  init(_ target: Target = .onnx, hook: @escaping Hook = { _, _ in }) {
    self.target = target
    self.hook = hook
  }

  func open(_ part: LoadedPart) async throws -> any PartSession {
    try await hook("open \(part.name)", log.count("open \(part.name)"))
    log.opened(part.name)
    return FakeSession(part: part, runtime: self)
  }
}

struct FakeSession: PartSession {
  let part: LoadedPart
  let runtime: FakeRuntime

  func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor] {
    let number = runtime.log.count("run \(part.name)")
    runtime.log.ran(part.name)
    try await runtime.hook("run \(part.name)", number)
    var outputs: [String: Tensor] = [:]
    for spec in part.outputs { outputs[spec.name] = Tensor.filled(spec.shape, 0) }
    return outputs
  }

  func close() async {
    runtime.log.closed(part.name)
  }
}

/// Cancels the task that asks.
func cancelThisTask() {
  withUnsafeCurrentTask { $0?.cancel() }
}
