import Foundation

/// Every error of this package but `CancellationError`, which passes unchanged.
public enum MTUError: Error, Sendable, Equatable {
  /// What of a part's life failed.
  public enum Phase: String, Sendable {
    case open
    case run
  }

  /// The bundle breaks a rule of the contract ("Before anything is trusted").
  ///
  /// `rule` is its number, 1 to 13; 0 where the bundle is not what it says of itself or what the
  /// app expects. `reason` names the place: a file, or a path in the manifest.
  case bundleRefused(rule: Int, reason: String)
  /// The task cannot serve this request. `legal` lists what it takes, where that can be listed.
  case requestRefused(String, legal: [String] = [])
  /// A runtime cannot load or run a part.
  case partFailed(part: String, phase: Phase, reason: String)
  /// A prediction, of a pass counted from 1, or the picture (`pass` is nil) holds NaN or Inf.
  case notFinite(pass: Int?)
  /// The runtime says that memory is not enough. `needs` are the bytes of the part's weights, a
  /// lower bound.
  case outOfMemory(part: String, needs: Int)
  /// What runs bundles of this target is not here, or too old.
  case runtimeMissing(Target, reason: String)
  /// The pipeline was closed.
  case closed
}

extension MTUError: CustomStringConvertible, LocalizedError {
  /// One line: what is wrong, where, and what is legal.
  public var description: String {
    switch self {
    case .bundleRefused(let rule, let reason):
      rule > 0 ? "rule \(rule): \(reason)" : reason
    case .requestRefused(let reason, let legal):
      legal.isEmpty ? reason : "\(reason); legal: \(legal.joined(separator: ", "))"
    case .partFailed(let part, let phase, let reason):
      "\(part) cannot be \(phase == .open ? "loaded" : "run"): \(reason)"
    case .notFinite(let pass):
      pass.map { "pass \($0): the prediction holds NaN or Inf" } ?? "the picture holds NaN or Inf"
    case .outOfMemory(let part, let needs):
      "not enough memory for \(part), whose weights are \(needs) bytes"
    case .runtimeMissing(let target, let reason):
      "a bundle for \(target.rawValue) cannot run: \(reason)"
    case .closed:
      "the pipeline is closed"
    }
  }

  /// The same line, for `localizedDescription`.
  public var errorDescription: String? { description }
}
