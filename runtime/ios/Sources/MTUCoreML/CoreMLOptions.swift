#if canImport(CoreML)
  import CoreML
  import Foundation
  import MTUCore

  /// The processors that may run a model.
  public enum ComputeUnits: String, Sendable, CaseIterable {
    /// CPU, GPU and Neural Engine, as Core ML chooses.
    case all = "ALL"
    /// The CPU alone.
    case cpuOnly = "CPU_ONLY"
    /// CPU and GPU. The system refuses GPU work of an app in the background.
    case cpuAndGPU = "CPU_AND_GPU"
    /// CPU and Neural Engine.
    case cpuAndNeuralEngine = "CPU_AND_NE"

    var coreML: MLComputeUnits {
      switch self {
      case .all: .all
      case .cpuOnly: .cpuOnly
      case .cpuAndGPU: .cpuAndGPU
      case .cpuAndNeuralEngine: .cpuAndNeuralEngine
      }
    }

    /// Whether work on them may go on while the app is in the background.
    public var runsInBackground: Bool { self == .cpuOnly || self == .cpuAndNeuralEngine }
  }

  /// How Core ML runs parts.
  public struct CoreMLOptions: Sendable {
    /// What takes the place of the manifest's `compute_unit`.
    public var computeUnits: ComputeUnits?
    /// The folder of compiled models; nil is `mtu/compiled` in Application Support.
    public var compiledModels: URL?
    /// Seconds after which a compiled model that nobody opened is removed: 30 days.
    public var unusedFor: TimeInterval

    public init(
      computeUnits: ComputeUnits? = nil, compiledModels: URL? = nil,
      unusedFor: TimeInterval = 30 * 86_400
    ) {
      self.computeUnits = computeUnits
      self.compiledModels = compiledModels
      self.unusedFor = unusedFor
    }
  }
#endif
