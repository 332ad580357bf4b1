import Foundation
import MTUCore

/// What loads and runs the parts of a job.
public struct JobEngine: Sendable {
  /// The engine's name in records, such as `Core ML`.
  public let name: String
  /// Its version, or the system's.
  public let version: String
  /// What opens the parts.
  public let runtime: any PartRuntime

  public init(name: String, version: String, runtime: any PartRuntime) {
    self.name = name
    self.version = version
    self.runtime = runtime
  }
}

/// Runs jobs of the benchmark suite: files in, a file out.
public struct JobRunner: Sendable {
  /// Makes an engine with a job's options; what it keeps goes into the job's `folder`. Throws an
  /// error of one line for options that it does not take.
  public typealias MakeEngine =
    @Sendable (_ options: [String: String], _ folder: URL) throws -> JobEngine

  private let engines: [String: MakeEngine]
  private let runner: JobResult.Runner

  /// `engines` by the `engine` of a job; `name` and `version` are the runner's own, for results.
  public init(engines: [String: MakeEngine], name: String, version: String) {
    self.engines = engines
    runner = JobResult.Runner(name: name, version: version)
  }

  /// Runs the job of a file, whose paths are relative to its folder; returns the exit code.
  ///
  /// `result` is written after every loading and sample, so that what was measured stays where
  /// the process is killed. `progress` gets a JSON object a line.
  @discardableResult
  public func run(
    job file: URL, result: URL, progress: @escaping @Sendable (String) -> Void = { _ in }
  ) async -> Int {
    try? FileManager.default.removeItem(at: result)
    var measuring = Measuring(file: result, progress: progress, runner: runner)
    let code: Int
    do {
      try await measure(file, &measuring)
      measuring.result.status = .measured
      measuring.result.reason = nil
      code = 0
    } catch {
      measuring.result.reason = firstLine(error)
      code = (error as? Refusal)?.code ?? 5
    }
    do {
      try write(measuring.result, to: result)
    } catch {
      progress(event("failed", ["reason": firstLine(error)]))
      return 2
    }
    return code
  }

  private func measure(_ file: URL, _ measuring: inout Measuring) async throws {
    let folder = file.deletingLastPathComponent()
    let job = try Refusal.of(2) { try Job(Array(Data(contentsOf: file)), file.lastPathComponent) }
    try Refusal.of(2) {
      try require(job.cpus == "all" && job.threads == 0, "threads and cpus are the system's here")
    }
    let tensors = try Refusal.of(3) { try JobRunner.tensors(job, folder) }
    try Refusal.of(2) { try job.check(tensors) }
    guard let make = engines[job.engine] else {
      let legal = engines.keys.sorted().joined(separator: ", ")
      throw Refusal(code: 4, reason: "no engine \(shown(job.engine)); legal: \(legal)")
    }
    let engine = try Refusal.of(4) { try make(job.options, folder) }
    measuring.result.engine = .init(name: engine.name, version: engine.version)
    measuring.result.machine = Machine.current
    let start = Machine.memory
    var sessions: [String: any PartSession] = [:]
    do {
      for (name, part) in job.parts.sorted(by: { $0.key < $1.key }) {
        sessions[name] = try await open(name, part, folder, engine, again: false, &measuring)
      }
      let loaded = Machine.memory
      let registers = try await sample(job, tensors, sessions, &measuring)
      measuring.result.memory = .init(
        start: start, loaded: loaded, run: Machine.memory, peakTotal: Machine.peakMemory)
      for (name, part) in job.parts.sorted(by: { $0.key < $1.key }) where job.loadAgain {
        await sessions.removeValue(forKey: name)?.close()
        sessions[name] = try await open(name, part, folder, engine, again: true, &measuring)
      }
      try compare(job, tensors, registers, &measuring)
    } catch {
      for session in sessions.values { await session.close() }
      throw error
    }
    for session in sessions.values { await session.close() }
  }

  private static func tensors(_ job: Job, _ folder: URL) throws -> [String: Tensor] {
    guard let name = job.tensors else { return [:] }
    let file = folder.appendingPathComponent(name)
    let attributes = try FileManager.default.attributesOfItem(atPath: file.path)
    let size = (attributes[.size] as? NSNumber)?.intValue ?? 0
    let tensors = try Safetensors(file.path, size: size, name)
    return try tensors.entries.keys.reduce(into: [:]) { all, key in
      all[key.text] = try tensors.tensor(key.text)
    }
  }

  private func open(
    _ name: String, _ part: Job.Part, _ folder: URL, _ engine: JobEngine, again: Bool,
    _ measuring: inout Measuring
  ) async throws -> any PartSession {
    let url = folder.appendingPathComponent(part.path)
    guard FileManager.default.fileExists(atPath: url.path) else {
      throw Refusal(code: 3, reason: "\(part.path) is missing")
    }
    let loaded = LoadedPart(
      name: name, url: url, sha256: try artefactSHA256(url), entry: part.entry,
      inputs: part.inputs, outputs: part.outputs, bytes: 0)
    let clock = ContinuousClock()
    let begin = clock.now
    let session = try await engine.runtime.open(loaded)
    let took = seconds(clock.now - begin)
    if again {
      measuring.result.loadAgainSeconds[name] = took
    } else {
      measuring.result.loadSeconds[name] = took
    }
    measuring.report(again ? "loaded again" : "loaded", ["part": name, "seconds": took])
    return session
  }

  private func sample(
    _ job: Job, _ tensors: [String: Tensor], _ sessions: [String: any PartSession],
    _ measuring: inout Measuring
  ) async throws -> [String: Tensor] {
    var registers = tensors
    let clock = ContinuousClock()
    let deadline = clock.now + .seconds(job.deadlineSeconds)
    let count = job.warmup + job.samples
    for number in 0..<count {
      try require(clock.now < deadline, "no result in \(job.deadlineSeconds) s")
      var run = ProgramRun(registers: tensors)
      let begin = clock.now
      try await run.run(job.program, sessions)
      let took = seconds(clock.now - begin)
      if number == 0 { measuring.result.firstSeconds = took }
      if number >= job.warmup {
        measuring.result.sampleSeconds.append(took)
        for (part, seconds) in run.calls {
          let before = measuring.result.calls[part]?.seconds ?? []
          measuring.result.calls[part] = .init(
            count: before.count + seconds.count, seconds: before + seconds)
        }
      }
      registers = run.registers
      let warmup = number < job.warmup
      measuring.report(
        "sample", ["number": number + 1, "of": count, "seconds": took, "warmup": warmup])
      if job.cooldownMilliseconds > 0 {
        try await Task.sleep(for: .milliseconds(job.cooldownMilliseconds))
      }
    }
    return registers
  }

  private func compare(
    _ job: Job, _ tensors: [String: Tensor], _ registers: [String: Tensor],
    _ measuring: inout Measuring
  ) throws {
    for (register, name) in job.expected {
      guard let actual = registers[register], let wanted = tensors[name] else { continue }
      let decibels = psnr(wanted, actual)
      let isLegal = actual.isFinite && !decibels.isNaN && decibels > -.infinity
      try require(isLegal, "\(shown(register)) holds NaN or Inf or has another shape")
      measuring.result.psnr[register] = min(decibels, 999)
    }
  }
}

/// A job that cannot be run, with its exit code.
struct Refusal: Error, LocalizedError {
  let code: Int
  let reason: String

  var errorDescription: String? { reason }

  static func of<Result>(_ code: Int, _ body: () throws -> Result) throws -> Result {
    do {
      return try body()
    } catch {
      throw Refusal(code: code, reason: firstLine(error))
    }
  }
}

/// A result on its way, and who hears of it.
private struct Measuring {
  let file: URL
  let progress: @Sendable (String) -> Void
  var result: JobResult
  private var written = ContinuousClock.now - .seconds(60)

  init(file: URL, progress: @escaping @Sendable (String) -> Void, runner: JobResult.Runner) {
    self.file = file
    self.progress = progress
    result = JobResult(runner: runner)
  }

  /// Tells an event; what was measured is written, at most once a second.
  mutating func report(_ name: String, _ values: [String: Any]) {
    progress(event(name, values))
    if ContinuousClock.now - written > .seconds(1) {
      try? write(result, to: file)
      written = .now
    }
  }
}

/// An event as a line of JSON.
func event(_ name: String, _ values: [String: Any] = [:]) -> String {
  let object = values.merging(["event": name]) { value, _ in value }
  let data = try? JSONSerialization.data(withJSONObject: object, options: [.sortedKeys])
  return data.map { String(decoding: $0, as: UTF8.self) } ?? #"{"event":"\#(name)"}"#
}
