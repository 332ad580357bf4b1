import Foundation
import MTUCore

extension Command {
  private static let benchFlags = [
    Flag(name: "--output", short: "-o", value: "FILE.json", help: "also write the figures here"),
    Flag(name: "--task", value: "NAME", help: "which task, where the bundle has several"),
    Flag(name: "--warmup", value: "N", help: "pictures before the samples; 1 by default"),
    Flag(name: "--samples", value: "N", help: "pictures that are measured; 5 by default"),
    Flag(name: "--memory", value: "least|unet|all", help: "what stays loaded; all by default"),
    Flag(name: "--force", help: "replace the output"),
  ]

  /// Measures whole pictures of the goldens' request on this machine.
  func bench(_ words: [String]) async throws -> Int32 {
    let use = "mtu bench BUNDLE"
    guard let arguments = try self.arguments(words, use, Command.benchFlags) else { return 0 }
    guard let folder = arguments.operands.first, arguments.operands.count == 1 else {
      throw UsageError(reason: "name one bundle: \(use)")
    }
    let output = arguments["--output"]
    if let output { try requireWritable(output, force: arguments.has("--force")) }
    let warmup = try arguments.integer("--warmup", 0...1000) ?? 1
    let count = try arguments.integer("--samples", 1...1000) ?? 5
    let memory = arguments.has("--memory") ? try self.memory(arguments) : .all
    let bundle = try open(folder)
    let runtime = try runtimes(bundle.target)
    let options = Pipeline.Options(memory: memory)
    let pipeline = try Pipeline(
      bundle, runtime: runtime, task: arguments["--task"], options: options)
    guard let request = try bundle.goldenRequest(task: pipeline.task.name) else {
      throw MTUError.requestRefused("the bundle has no golden of this task's loop")
    }
    let load = try await pipeline.prewarm()
    var samples: [Timings] = []
    for _ in 0..<warmup { _ = try await pipeline.picture(request) }
    for _ in 0..<count { samples.append(try await pipeline.picture(request).timings) }
    await pipeline.close()
    let names = bundle.partNames(task: pipeline.task.name)
    let seconds = { (duration: Duration?) in Output.number((duration ?? .zero).seconds) }
    let record = Output.object([
      ("bundle", .text(bundle.name)), ("task", .text(pipeline.task.name)),
      ("target", .text(bundle.target.rawValue)), ("memory", .text(memory.rawValue)),
      ("system", .text(ProcessInfo.processInfo.operatingSystemVersionString)),
      ("load_s", .object(names.map { ($0, seconds(load[$0])) })),
      ("samples_s", .list(samples.map { seconds($0.total) })),
      (
        "parts_s",
        .object(names.map { name in (name, .list(samples.map { seconds($0.run[name]) })) })
      ),
    ])
    if let output { try write(Data("\(record.json)\n".utf8), to: output) }
    if arguments.has("--json") {
      print(record.json)
    } else {
      let middle = fixed(median(samples.map(\.total.seconds)), 3)
      print("\(folder): \(pipeline.task.name): median \(middle) s of \(count)")
    }
    return 0
  }
}

/// The middle of numbers, of which there is one at least; of an even count, the mean of the two.
func median(_ numbers: [Double]) -> Double {
  let sorted = numbers.sorted()
  let half = sorted.count / 2
  return sorted.count % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2
}
