import Foundation

/// What a runner answers, of the form of `runtime/android/runner/README.md`.
public struct JobResult: Sendable, Codable {
  /// Whether the job was measured to its end.
  public enum Status: String, Sendable, Codable {
    case measured
    case failed
  }

  /// The runner's own description.
  public struct Runner: Sendable, Codable {
    public var name: String
    public var version: String
    public var language = "Swift"

    public init(name: String, version: String) {
      self.name = name
      self.version = version
    }
  }

  /// The engine that ran.
  public struct Engine: Sendable, Codable {
    public var name: String
    public var version: String
  }

  /// The calls of one part within the samples, in order.
  public struct Calls: Sendable, Codable {
    public var count: Int
    public var seconds: [Double]
  }

  /// Bytes of the process: on Apple's systems its footprint and what is mapped.
  public struct MemoryReading: Sendable, Codable {
    public var anonymous: Int?
    public var file: Int?
    public var peak: Int?

    /// What is not known is null: the record has all three.
    public func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(anonymous, forKey: .anonymous)
      try container.encode(file, forKey: .file)
      try container.encode(peak, forKey: .peak)
    }

    enum CodingKeys: String, CodingKey {
      case anonymous, file, peak
    }
  }

  /// Memory before loading, after it, and after the samples.
  public struct MemoryPhases: Sendable, Codable {
    public var start: MemoryReading
    public var loaded: MemoryReading
    public var run: MemoryReading
    public var peakTotal: Int?

    enum CodingKeys: String, CodingKey {
      case start, loaded, run
      case peakTotal = "peak_total"
    }
  }

  /// What the runner sees of its machine.
  public struct Machine: Sendable, Codable {
    public var arch: String
    public var cores: Int
    public var pageSize: Int

    enum CodingKeys: String, CodingKey {
      case arch, cores
      case pageSize = "page_size"
    }
  }

  public var format = 1
  public var status: Status
  public var reason: String?
  public var runner: Runner?
  public var engine: Engine?
  public var loadSeconds: [String: Double] = [:]
  public var loadAgainSeconds: [String: Double] = [:]
  public var firstSeconds: Double?
  public var sampleSeconds: [Double] = []
  public var calls: [String: Calls] = [:]
  public var memory: MemoryPhases?
  public var psnr: [String: Double] = [:]
  public var machine: Machine?

  enum CodingKeys: String, CodingKey {
    case format, status, reason, runner, engine, calls, memory, machine
    case loadSeconds = "load_s"
    case loadAgainSeconds = "load_again_s"
    case firstSeconds = "first_s"
    case sampleSeconds = "samples_s"
    case psnr = "psnr_db"
  }

  init(runner: Runner) {
    status = .failed
    reason = "the app ended before the job did"
    self.runner = runner
  }
}

/// Writes JSON whole or not at all.
func write(_ value: some Encodable, to file: URL) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.sortedKeys]
  try encoder.encode(value).write(to: file, options: .atomic)
}
