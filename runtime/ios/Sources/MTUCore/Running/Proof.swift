// "Check on first start" of the contract: parts and loops against the goldens.

/// How near a part or a loop comes to PyTorch.
public struct Verdict: Sendable, Equatable {
  /// A part, or `pipeline` of a loop.
  public let part: String
  /// The task whose entry was run.
  public let task: String
  /// `exported`, `quantised`, `passes`, or `loop`, which is a figure.
  public let stage: String
  /// The worst of all; infinity of what is equal, -infinity of what is not finite.
  public let psnrDB: Double
  /// What it must reach; 0 of a figure.
  public let floorDB: Double
  /// Nil of the stage `loop`: there is nothing to reach.
  public let passed: Bool?
  /// By output, of its worst case.
  public let outputs: [String: Double]

  fileprivate init(
    _ part: String, _ task: String, _ stage: String, _ floorDB: Double?, _ outputs: [String: Double]
  ) {
    self.part = part
    self.task = task
    self.stage = stage
    self.outputs = outputs
    psnrDB = outputs.values.min() ?? .infinity
    self.floorDB = floorDB ?? 0
    passed = floorDB.map { (outputs.values.min() ?? .infinity) >= $0 }
  }
}

private let cases = 3
private let pipelinePart = "pipeline"

extension Part {
  /// The first task with the same entry as this one: that one has goldens and verdicts.
  func provenTask(_ task: String) -> String {
    guard let own = entry(task) else { return task }
    return entries.first { $0.name.isExactly(own) }?.task ?? task
  }
}

/// The golden request of a task's loop.
struct GoldenRequest {
  var request: Request
  var pictures: [String: PictureValue]
  var tensors: [String: Tensor]
}

extension Manifest {
  /// A part on its goldens: the worst case of each output.
  func prove(
    _ part: Part, _ task: String, _ goldens: Safetensors,
    _ run: @Sendable ([String: Tensor]) async throws -> [String: Tensor]
  ) async throws -> Verdict {
    let entry = try proofEntry(part.name, task, ["quantised", "exported"])
    var outputs: [String: Double] = [:]
    for number in 0..<cases {
      let prefix = "\(part.name)/\(task)/\(number)/"
      var feeds: [String: Tensor] = [:]
      for spec in part.inputs(task) { feeds[spec.name] = try goldens.golden(prefix + spec.name) }
      let results = try await run(feeds)
      for spec in part.outputs {
        let reference = try goldens.golden(prefix + spec.name)
        let reached = results[spec.name].map { psnr(reference, $0) } ?? -.infinity
        outputs[spec.name] = min(outputs[spec.name] ?? .infinity, reached)
      }
    }
    return Verdict(part.name, task, entry.stage, entry.floorDB, outputs)
  }

  /// Each pass on its own and the picture of the last latent, then the loop running free as a
  /// figure; nothing where the bundle has no golden of this loop.
  func proveLoop(
    _ task: ManifestTask, _ goldens: Safetensors,
    _ begin: @Sendable (PreparedRequest) async throws -> Evaluation
  ) async throws -> [Verdict] {
    guard let golden = try goldenRequest(task, goldens) else { return [] }
    let entry = try proofEntry(pipelinePart, task.name, ["passes"])
    let prepared = try prepare(task, golden.request, golden.pictures, golden.tensors)
    let evaluation = try await begin(prepared)
    let reference = try goldens.golden("loop/\(task.name)/picture")
    guard let table = prepared.table, let noise = prepared.noise else {
      let outputs = ["picture": psnr(reference, try await evaluation.picture(nil))]
      return [Verdict(pipelinePart, task.name, "passes", entry.floorDB, outputs)]
    }
    let (passes, last) = try await provePasses(task, evaluation, table, noise, goldens)
    var outputs = passes
    outputs["picture"] = psnr(reference, try await evaluation.picture(last))
    let free = try await table.run(noise, try evaluation.start(), evaluation.denoise)
    let figures = [
      "x": psnr(last, free), "picture": psnr(reference, try await evaluation.picture(free)),
    ]
    return [
      Verdict(pipelinePart, task.name, "passes", entry.floorDB, outputs),
      Verdict(pipelinePart, task.name, "loop", nil, figures),
    ]
  }

  /// dB of x after each pass, each from the reference's states, and the reference's last x.
  private func provePasses(
    _ task: ManifestTask, _ evaluation: Evaluation, _ table: Schedule, _ noise: Tensor,
    _ goldens: Safetensors
  ) async throws -> ([String: Double], Tensor) {
    var x = table.start(noise, try evaluation.start())
    var states: [PassState] = []
    var outputs: [String: Double] = [:]
    for index in table.passes.indices {
      let m = try await table.ask(index, x, evaluation.denoise)
      let after = table.advance(index, [PassState(x: x, m: m)] + states, noise)
      let reference = try goldens.golden("loop/\(task.name)/outputs/\(index)")
      states = [PassState(x: x, m: reference)] + states
      x = try goldens.golden("loop/\(task.name)/latents/\(index)")
      outputs["latents/\(index)"] = psnr(x, after)
    }
    return (outputs, x)
  }

  /// Nil where there is none.
  func goldenRequest(_ task: ManifestTask, _ goldens: Safetensors) throws -> GoldenRequest? {
    let prefix = "loop/\(task.name)/"
    guard let golden, goldens["\(prefix)picture"] != nil else { return nil }
    var result = GoldenRequest(request: Request(), pictures: [:], tensors: [:])
    if task.takesPrompt { result.request.prompt = golden.prompt }
    if task.takesNegativePrompt { result.request.negativePrompt = golden.negativePrompt }
    for name in task.inputs.pictures.keys {
      result.pictures[name] = .fitted(try goldens.golden("\(prefix)request/\(name)"))
    }
    for name in task.inputs.tensors.keys {
      result.tensors[name] = try goldens.golden("\(prefix)request/\(name)")
    }
    guard task.flow.hasLoop else { return result }
    result.request.steps = golden.steps
    if task.flow.start != nil { result.request.strength = golden.strength }
    result.request.noise = .values(try goldens.golden("\(prefix)noise").floats)
    return result
  }

  private func proofEntry(_ part: String, _ task: String, _ stages: [String]) throws -> ProofEntry {
    let entry = proof.first {
      $0.part == part && $0.task == task && stages.contains($0.stage)
    }
    guard let entry else {
      let reason = "proof has no entry of \(part) for task \(task)"
      throw MTUError.bundleRefused(rule: 0, reason: reason)
    }
    return entry
  }
}

extension Safetensors {
  /// A golden; a damaged one is a refusal by rule 10.
  fileprivate func golden(_ name: String) throws -> Tensor {
    try underRule(10) { try tensor(name) }
  }
}

extension ModelBundle {
  /// The request of the goldens of a task's loop, its pictures fitted; nil where there is none.
  public func goldenRequest(task name: String) throws -> Request? {
    guard let goldens, let golden = try manifest.goldenRequest(try task(name), goldens) else {
      return nil
    }
    var request = golden.request
    request.tensors = golden.tensors
    for (name, picture) in golden.pictures {
      if case .fitted(let tensor) = picture { request.tensors[name] = tensor }
    }
    return request
  }
}
