import Foundation
import MTUBench

/// What the bench app's screen shows: the last lines of what it does.
@MainActor
public final class BenchModel {
  /// The last lines, the newest at the end.
  public private(set) var lines: [String] = []
  /// Whether a request was answered.
  public private(set) var isDone = false
  /// Called after each change.
  public var onChange: (() -> Void)?

  private static let kept = 30

  public init() {}

  /// Adds a line; only the last ones stay.
  public func add(_ line: String) {
    lines = Array((lines + [line]).suffix(BenchModel.kept))
    onChange?()
  }

  /// Does what the environment asks for, by `app`; returns whether there was a request.
  ///
  /// The process is to end after a request.
  public func serve(_ environment: [String: String], _ app: BenchApp) async -> Bool {
    guard let request = environment[BenchApp.variable] else {
      add("Waiting for: mtu-export bench BUNDLE --device ios")
      return false
    }
    let isLeft = await app.answer(request)
    add(isLeft ? "done" : "the answer cannot be written")
    isDone = true
    onChange?()
    return true
  }
}
