import MTUCore

extension Command {
  private static let verifyFlags = [
    Flag(name: "--task", value: "NAME", help: "only this task"),
    Flag(name: "--min-psnr", value: "DB", help: "replaces the floors of the bundle"),
  ]

  /// Runs bundles against their goldens; 1 where something is below its floor.
  func verify(_ words: [String]) async throws -> Int32 {
    let use = "mtu verify BUNDLE..."
    guard let arguments = try self.arguments(words, use, Command.verifyFlags) else { return 0 }
    guard !arguments.operands.isEmpty else { throw UsageError(reason: "name a bundle: \(use)") }
    let floor = try arguments.number("--min-psnr", 0...300)
    var outputs: [Output] = []
    var failure: String?
    for folder in arguments.operands {
      let verdicts = try await self.verdicts(folder, arguments)
      for verdict in verdicts {
        let reached = verdict.passed.map { floor.map { verdict.psnrDB >= $0 } ?? $0 }
        let limit = floor ?? verdict.floorDB
        if !arguments.has("--json") { print(Command.line(folder, verdict, limit, reached)) }
        if reached == false, failure == nil {
          failure =
            "\(verdict.part) of task \(verdict.task): \(Command.decibels(verdict.psnrDB))"
            + " dB, floor \(fixed(limit, 1)) dB"
        }
      }
      let proof = verdicts.map { Command.output($0, floor) }
      outputs.append(.object([("bundle", .text(folder)), ("proof", .list(proof))]))
    }
    if arguments.has("--json") { print(Output.list(outputs).json) }
    if let failure { throw Failure(reason: "parity below the floor: \(failure)", code: 1) }
    return 0
  }

  private func verdicts(_ folder: String, _ arguments: Arguments) async throws -> [Verdict] {
    let bundle = try open(folder)
    let runtime = try runtimes(bundle.target)
    let names = arguments["--task"].map { [$0] } ?? bundle.tasks.map(\.name)
    let isVerbose = arguments.has("--verbose")
    let warn = self.warn
    var verdicts: [Verdict] = []
    for name in names {
      let pipeline = try Pipeline(bundle, runtime: runtime, task: name)
      let own = try await pipeline.verify { part in
        if isVerbose { warn("\(folder): \(name): \(part) is done") }
      }
      await pipeline.close()
      verdicts += own.filter { !verdicts.contains($0) }
    }
    return verdicts
  }

  static func decibels(_ number: Double) -> String {
    number == .infinity ? "equal" : fixed(number, 1)
  }

  private static func line(
    _ folder: String, _ verdict: Verdict, _ floor: Double, _ passed: Bool?
  ) -> String {
    let word = passed.map { $0 ? "passed" : "failed" } ?? "a figure"
    let limit = passed == nil ? "" : ", floor \(fixed(floor, 1)) dB"
    return "\(folder): \(verdict.task): \(verdict.part): \(verdict.stage): "
      + "\(decibels(verdict.psnrDB)) dB\(limit): \(word)"
  }

  private static func output(_ verdict: Verdict, _ floor: Double?) -> Output {
    let passed = verdict.passed.map { floor.map { verdict.psnrDB >= $0 } ?? $0 }
    return .object([
      ("part", .text(verdict.part)), ("task", .text(verdict.task)),
      ("stage", .text(verdict.stage)), ("psnr_db", .decibels(verdict.psnrDB)),
      ("floor_db", .number(floor ?? verdict.floorDB)),
      ("passed", passed.map { .bool($0) } ?? .null),
    ])
  }
}
