import Foundation
import MTUCore

extension Command {
  private static let runFlags = [
    Flag(name: "--output", short: "-o", value: "FILE.png", help: "the picture to write"),
    Flag(name: "--task", value: "NAME", help: "which task, where the bundle has several"),
    Flag(name: "--prompt", value: "TEXT", help: "what the picture is to show"),
    Flag(name: "--negative-prompt", value: "TEXT", help: "what it is led away from"),
    Flag(name: "--image", value: "FILE", help: "the picture to start from"),
    Flag(name: "--mask", value: "FILE", help: "white where to repaint"),
    Flag(name: "--image-size", value: "WxH", help: "--image holds raw RGBA of this size"),
    Flag(name: "--mask-size", value: "WxH", help: "--mask holds raw RGBA of this size"),
    Flag(
      name: "--input", value: "NAME=VALUE", isRepeated: true,
      help: "another input: a picture, a .npy file or a number"),
    Flag(name: "--steps", value: "N", help: "a step count that the bundle has a table for"),
    Flag(name: "--strength", value: "SHARE", help: "the share of the steps that is run"),
    Flag(name: "--seed", value: "N", help: "seed of the noise; 0 by default"),
    Flag(name: "--noise", value: "FILE.npy", help: "noise in place of a seed"),
    Flag(name: "--guidance", value: "SCALE", help: "strength of the prompt"),
    Flag(name: "--image-guidance", value: "SCALE", help: "strength of the input image"),
    Flag(name: "--memory", value: "least|unet|all", help: "what stays loaded"),
    Flag(name: "--force", help: "replace the output"),
  ]

  /// Makes a picture.
  func picture(_ words: [String]) async throws -> Int32 {
    let use = "mtu run BUNDLE -o FILE.png"
    guard let arguments = try self.arguments(words, use, Command.runFlags) else { return 0 }
    guard let folder = arguments.operands.first, arguments.operands.count == 1 else {
      throw UsageError(reason: "name one bundle: \(use)")
    }
    guard let output = arguments["--output"] else {
      throw UsageError(reason: "-o FILE.png is needed")
    }
    guard output.lowercased().hasSuffix(".png") else {
      throw UsageError(reason: "\(shown(output)): only .png is written")
    }
    try requireWritable(output, force: arguments.has("--force"))
    let memory = try self.memory(arguments)
    let bundle = try open(folder)
    let runtime = try runtimes(bundle.target)
    let options = Pipeline.Options(memory: memory)
    let pipeline = try Pipeline(
      bundle, runtime: runtime, task: arguments["--task"], options: options)
    let request = try self.request(pipeline.task, arguments)
    let cut = pipeline.cut(request.prompt ?? "")
    if !cut.isEmpty {
      warn("the prompt is longer than the text encoder reads; left out: \(shown(cut))")
    }
    let (isVerbose, warn) = (arguments.has("--verbose"), self.warn)
    let passes = Counter()
    let finished = try await pipeline.picture(request) { event in
      switch event {
      case .loading(let part): if isVerbose { warn("loading \(part)") }
      case .pass(let number, let of, _, _):
        passes.set(number)
        if isVerbose { warn("pass \(number) of \(of)") }
      case .finished: break
      }
    }
    await pipeline.close()
    try Task.checkCancellation()
    try write(PNG.encode(finished.picture), to: output)
    let task = pipeline.task
    let steps = task.tables.isEmpty ? nil : request.steps ?? task.steps
    let seconds = finished.timings.total.seconds
    let name = "\(bundle.target.rawValue)"
    if arguments.has("--json") {
      var fields: [(String, Output)] = [
        ("picture", .text(output)), ("bundle", .text(folder)), ("task", .text(task.name)),
      ]
      if let steps { fields.append(("steps", .number(Double(steps)))) }
      fields += [
        ("passes", .number(Double(passes.value))), ("seconds", .number(rounded(seconds, 2))),
        ("runner", .text(name)),
      ]
      print(Output.object(fields).json)
    } else {
      let count = steps.map { "\($0) steps, " } ?? ""
      print("\(output): \(task.name), \(count)\(fixed(seconds, 1)) s, \(name)")
    }
    return 0
  }

  func memory(_ arguments: Arguments) throws -> Memory {
    let text = arguments["--memory"] ?? Memory.least.rawValue
    guard let memory = Memory(rawValue: text) else {
      let legal = Memory.allCases.map(\.rawValue).joined(separator: ", ")
      throw UsageError(reason: "--memory must be one of \(legal), got \(text.prefix(80))")
    }
    return memory
  }

  private func request(_ task: TaskInfo, _ arguments: Arguments) throws -> Request {
    var request = Request(
      prompt: arguments["--prompt"], negativePrompt: arguments["--negative-prompt"],
      steps: try arguments.integer("--steps", 1...10000),
      strength: try arguments.number("--strength", 0...1))
    request.guidance.text = try arguments.number("--guidance", -100...100)
    request.guidance.image = try arguments.number("--image-guidance", -100...100)
    if let file = arguments["--noise"] {
      if arguments.has("--seed") {
        throw UsageError(reason: "--noise FILE is the noise itself; give no --seed")
      }
      request.noise = .values(try NumpyFile.read(file).floats)
    } else {
      request.noise = .seed(UInt64(try arguments.integer("--seed", 0...Int(UInt32.max)) ?? 0))
    }
    for (name, value, size) in try self.inputs(arguments) {
      if task.pictures[name] != nil {
        request.pictures[name] = try readPicture(value, size: size)
      } else if task.tensors[name] != nil {
        request.tensors[name] = try NumpyFile.read(value)
      } else if task.numbers[name] != nil {
        guard let number = Double(value) else {
          throw UsageError(reason: "--input \(name)= takes a number, got \(value.prefix(80))")
        }
        request.numbers[name] = number
      } else {
        let flag = ["image", "mask"].contains(name) ? "--\(name)" : "--input \(name)="
        throw UsageError(reason: "task \(shown(task.name)) takes no \(flag)")
      }
    }
    return request
  }

  /// Name, value and size of what the user gives by name.
  private func inputs(_ arguments: Arguments) throws -> [(String, String, String?)] {
    var inputs: [(String, String, String?)] = []
    for name in ["image", "mask"] {
      let size = arguments["--\(name)-size"]
      if let value = arguments["--\(name)"] {
        inputs.append((name, value, size))
      } else if size != nil {
        throw UsageError(reason: "--\(name)-size needs --\(name)")
      }
    }
    for text in arguments.all("--input") {
      let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
      guard parts.count == 2 else {
        throw UsageError(reason: "--input takes NAME=VALUE, got \(shown(text))")
      }
      inputs.append((parts[0], parts[1], nil))
    }
    return inputs
  }
}

/// The number of the last pass.
private final class Counter: @unchecked Sendable {  // guarded by its lock
  private let lock = NSLock()
  private var number = 0

  func set(_ number: Int) {
    lock.withLock { self.number = number }
  }

  var value: Int { lock.withLock { number } }
}
