import Foundation

/// What a runner answers, of the form of `runtime/android/runner/README.md`.
struct JobResult: Sendable, Codable {
  /// Whether the job was measured to its end.
  enum Status: String, Sendable, Codable {
    case measured
    case failed
  }

  /// The runner's own description.
  struct Runner: Sendable, Codable {
    var name: String
    var version: String
    var language = "Swift"

    init(name: String, version: String) {
      self.name = name
      self.version = version
    }
  }

  /// The engine that ran.
  struct Engine: Sendable, Codable {
    var name: String
    var version: String
  }

  /// The calls of one part within the samples, in order.
  struct Calls: Sendable, Codable {
    var count: Int
    var seconds: [Double]
  }

  /// Bytes of the process: on Apple's systems its footprint and what is mapped.
  struct MemoryReading: Sendable, Codable {
    var anonymous: Int?
    var file: Int?
    var peak: Int?

    /// What is not known is null: the record has all three.
    func encode(to encoder: any Encoder) throws {
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
  struct MemoryPhases: Sendable, Codable {
    var start: MemoryReading
    var loaded: MemoryReading
    var run: MemoryReading
    var peakTotal: Int?

    enum CodingKeys: String, CodingKey {
      case start, loaded, run
      case peakTotal = "peak_total"
    }
  }

  /// What the runner sees of its machine.
  struct Machine: Sendable, Codable {
    var arch: String
    var cores: Int
    var pageSize: Int

    enum CodingKeys: String, CodingKey {
      case arch, cores
      case pageSize = "page_size"
    }
  }

  var format = 1
  var status: Status
  var reason: String?
  var runner: Runner?
  var engine: Engine?
  var loadSeconds: [String: Double] = [:]
  var loadAgainSeconds: [String: Double] = [:]
  var firstSeconds: Double?
  var sampleSeconds: [Double] = []
  var calls: [String: Calls] = [:]
  var memory: MemoryPhases?
  var psnr: [String: Double] = [:]
  var machine: Machine?

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
