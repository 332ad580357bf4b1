import Foundation

/// One task of a bundle: pictures of requests, and the check against the goldens.
///
/// It does one thing at a time; others wait their turn, in order. Before a part is loaded or run it
/// looks whether the calling task was cancelled, and ends by `CancellationError` then. After a
/// picture, an error or a cancellation no more stays loaded than `Options.memory` says.
public actor Pipeline {
  /// How a pipeline runs.
  public struct Options: Sendable {
    /// What stays loaded.
    public var memory: Memory
    /// Whether `Event.pass` carries the latent, for a preview.
    public var latents: Bool

    /// By default as little stays loaded as can be.
    public init(memory: Memory = .least, latents: Bool = false) {
      self.memory = memory
      self.latents = latents
    }
  }

  /// Told of events, on no particular thread.
  public typealias Progress = @Sendable (Event) -> Void

  private struct SessionKey: Hashable {
    let part: String
    let entry: String
  }

  /// The bundle that it was opened with.
  public nonisolated let bundle: ModelBundle
  /// What it does and takes.
  public nonisolated let task: TaskInfo
  private nonisolated let tokenizers: [Exact: Tokenizer]
  private let manifest: Manifest
  private let manifestTask: ManifestTask
  private let runtime: any PartRuntime
  private let options: Options
  private let turns = TurnQueue()
  private var sessions: [SessionKey: any PartSession] = [:]
  private var active: SessionKey?
  private(set) var isClosed = false
  private var loadTimes: [String: Duration] = [:]
  private var runTimes: [String: Duration] = [:]

  /// Reads the tokenizers, but loads no part. `task` may be missing where the bundle has one.
  ///
  /// Throws `MTUError`: `runtimeMissing` for a bundle of another target than the runtime's,
  /// `requestRefused` for a task that the bundle has not, or not whole.
  public init(
    _ bundle: ModelBundle, runtime: any PartRuntime, task name: String? = nil,
    options: Options = Options()
  ) throws {
    let manifest = bundle.manifest
    let task = try bundle.task(name)
    guard runtime.target == bundle.target else {
      let reason = "the runtime given runs bundles for \(runtime.target.rawValue)"
      throw MTUError.runtimeMissing(bundle.target, reason: reason)
    }
    let missing = manifest.missingParts(task)
    let list = missing.joined(separator: ", ")
    try requireRequest(missing.isEmpty, "task \(task.name) needs \(list), which the bundle lacks")
    try underRule(0) { try manifest.checkElements(task) }
    var tokenizers: [Exact: Tokenizer] = [:]
    for record in manifest.tokenizers where task.reads(record.path) {
      tokenizers[Exact(record.path)] = try underRule(0) { try Tokenizer(bundle.files, record) }
    }
    self.bundle = bundle
    self.task = TaskInfo(task, manifest)
    self.tokenizers = tokenizers
    self.manifest = manifest
    manifestTask = task
    self.runtime = runtime
    self.options = options
  }

  /// What of a prompt no encoder reads; "" where it fits.
  public nonisolated func cut(_ prompt: String) -> String {
    let cuts = tokenizers.values.map { $0.encode(prompt).cut }
    return cuts.max { $0.unicodeScalars.count < $1.unicodeScalars.count } ?? ""
  }

  /// The events of making a picture. It begins at once; the last event is `finished`.
  ///
  /// Only the newest event is kept for a slow reader. Who drops the stream, or whose task is
  /// cancelled, cancels the picture; the stream then ends without `finished`.
  public nonisolated func generate(_ request: Request) -> AsyncThrowingStream<Event, any Error> {
    AsyncThrowingStream(bufferingPolicy: .bufferingNewest(1)) { continuation in
      let work = Task {
        do {
          let finished = try await picture(request) { continuation.yield($0) }
          continuation.yield(.finished(finished))
          continuation.finish()
        } catch {
          continuation.finish(throwing: error)
        }
      }
      continuation.onTermination = { reason in
        if case .cancelled = reason { work.cancel() }
      }
    }
  }

  /// The picture of a request. `progress` gets all events but `finished`.
  public func picture(_ request: Request, progress: Progress? = nil) async throws -> Finished {
    try await alone {
      let begin = ContinuousClock.now
      loadTimes = [:]
      runTimes = [:]
      let prepared = try manifest.prepare(manifestTask, request)
      let evaluation = try await self.evaluation(prepared, progress)
      var latent: Tensor?
      if let table = prepared.table, let noise = prepared.noise {
        let (count, hasLatents) = (table.passes.count, options.latents)
        latent = try await table.run(noise, try evaluation.start(), evaluation.denoise) {
          number, x in
          let elapsed = ContinuousClock.now - begin
          let shown = hasLatents ? x : nil
          progress?(.pass(number: number, of: count, elapsed: elapsed, latent: shown))
        }
      }
      let tensor = try await evaluation.picture(latent)
      guard tensor.isFinite else { throw MTUError.notFinite(pass: nil) }
      var seed: UInt64?
      if case .seed(let number) = request.noise, prepared.table != nil { seed = number }
      let total = ContinuousClock.now - begin
      return Finished(
        picture: RGBImage(tensor), tensor: tensor, seed: seed,
        timings: Timings(total: total, load: loadTimes, run: runTimes))
    }
  }

  /// Loads every part of the task once, and lets go of those that `Options.memory` does not keep:
  /// what the first picture would take longer. The seconds by part.
  public func prewarm() async throws -> [String: Duration] {
    try await alone {
      loadTimes = [:]
      for name in bundle.partNames(task: task.name) {
        guard let part = manifest.part(name) else { continue }
        _ = try await session(part, task.name, nil)
        active = nil
      }
      return loadTimes
    }
  }

  /// The check of "Check on first start": the parts of the task and its loop against the goldens.
  ///
  /// A verdict of another task stands for an entry that this one shares. `progress` gets the name
  /// of each part that is done.
  public func verify(
    parts: Bool = true, loop: Bool = true, progress: (@Sendable (String) -> Void)? = nil
  ) async throws -> [Verdict] {
    try await alone {
      guard let goldens = bundle.goldens else {
        throw MTUError.requestRefused("the bundle has no goldens")
      }
      var verdicts: [Verdict] = []
      for name in parts ? bundle.partNames(task: task.name) : [] {
        guard let part = manifest.part(name) else { continue }
        let proven = part.provenTask(task.name)
        let verdict = try await manifest.prove(part, proven, goldens) { feeds in
          try await self.run(part, proven, feeds, nil)
        }
        verdicts.append(verdict)
        progress?(name)
      }
      if loop {
        verdicts += try await manifest.proveLoop(manifestTask, goldens) { prepared in
          try await self.evaluation(prepared, nil)
        }
      }
      return verdicts
    }
  }

  /// Lets go of every part but one that is running; the next picture loads again what it needs.
  public func trim() async {
    await release { $0 == self.active }
  }

  /// Ends what runs before its next part, waits for it, and lets go of all parts. Later calls throw
  /// `MTUError.closed`.
  public func close() async {
    isClosed = true
    let turns = self.turns
    _ = await Task { try await turns.enter() }.result  // not cancelled with the calling task
    await release { _ in false }
    await turns.leave()
  }

  // ------------------------------------------------------------------------------------- turns

  private func alone<Result: Sendable>(
    _ work: () async throws -> Result
  ) async throws -> Result {
    try await turns.enter()
    do {
      try check()
      let result = try await work()
      await endTurn()
      return result
    } catch {
      await endTurn()
      throw error
    }
  }

  private func endTurn() async {
    active = nil
    let denoisers = self.denoisers
    switch options.memory {
    case .least: await release { _ in false }
    case .unet: await release { denoisers.contains($0.part) }
    case .all: break
    }
    await turns.leave()
  }

  private func check() throws {
    if isClosed { throw MTUError.closed }
    try Task.checkCancellation()
  }

  private var denoisers: Set<String> {
    Set(manifest.parts.filter { $0.kind == .denoiser }.map(\.name))
  }

  // ---------------------------------------------------------------------------------- sessions

  private func evaluation(
    _ prepared: PreparedRequest, _ progress: Progress?
  ) async throws -> Evaluation {
    let (name, tokenizers) = (task.name, self.tokenizers)
    return try await Evaluation(manifest, manifestTask, bundle.constants, prepared) { call, feeds in
      guard let part = self.bundle.manifest.part(call.part) else {
        throw MTUError.requestRefused("the bundle has no \(call.part)")
      }
      return try await self.run(part, name, feeds, progress)
    } tokenize: { path, text in
      guard let tokenizer = tokenizers[Exact(path)] else {
        throw MTUError.bundleRefused(rule: 0, reason: "no tokenizer \(shown(path))")
      }
      return tokenizer.encode(text).ids
    }
  }

  /// The outputs of a part that are the manifest's.
  private func run(
    _ part: Part, _ task: String, _ feeds: [String: Tensor], _ progress: Progress?
  ) async throws -> [String: Tensor] {
    let session = try await self.session(part, task, progress)
    defer { active = nil }
    try check()
    let begin = ContinuousClock.now
    let outputs = try await guarded(part.name, .run) { try await session.run(feeds) }
    runTimes[part.name, default: .zero] += ContinuousClock.now - begin
    for spec in part.outputs {
      guard let output = outputs[spec.name], output.elementType == .float32,
        output.shape == spec.shape
      else {
        let reason = "output \(shown(spec.name)) is not float32 \(spec.shape)"
        throw MTUError.partFailed(part: part.name, phase: .run, reason: reason)
      }
    }
    return outputs
  }

  /// The session of a part, which is the active one from here on; those that are not to be loaded
  /// beside it are let go.
  private func session(
    _ part: Part, _ task: String, _ progress: Progress?
  ) async throws -> any PartSession {
    guard let entry = part.entry(task) else {
      throw MTUError.requestRefused("\(part.name) has no entry for task \(task)")
    }
    let key = SessionKey(part: part.name, entry: entry)
    active = key
    if let session = sessions[key] { return session }
    if options.memory != .all {
      let kept = partsBeside(part.name)
      await release { kept.contains($0.part) }
    }
    try check()
    progress?(.loading(part: part.name))
    let loaded = manifest.loaded(part, task, entry, bundle.files)
    let begin = ContinuousClock.now
    let runtime = self.runtime
    let session = try await guarded(part.name, .open) { try await runtime.open(loaded) }
    loadTimes[part.name, default: .zero] += ContinuousClock.now - begin
    sessions[key] = session
    return session
  }

  private func guarded<Result: Sendable>(
    _ part: String, _ phase: MTUError.Phase, _ work: @Sendable () async throws -> Result
  ) async throws -> Result {
    do {
      return try await work()
    } catch let error where error is MTUError || error is CancellationError {
      throw error
    } catch {
      try Task.checkCancellation()
      throw MTUError.partFailed(part: part, phase: phase, reason: firstLine(error))
    }
  }

  private func partsBeside(_ name: String) -> Set<String> {
    let loop = manifestTask.partsOfLoop
    let together = loop.contains(name) ? Set(loop) : []
    return options.memory == .unet ? together.union(denoisers) : together
  }

  /// Lets go of all sessions but those that are kept.
  private func release(_ isKept: (SessionKey) -> Bool) async {
    let released = sessions.filter { !isKept($0.key) }
    for key in released.keys { sessions[key] = nil }
    for session in released.values {
      await Task { await session.close() }.value  // not cancelled with the calling task
    }
  }
}

extension Manifest {
  /// Refuses inputs and outputs that no machine of ours holds, before they are formed.
  fileprivate func checkElements(_ task: ManifestTask) throws {
    for call in task.flow.calls {
      for spec in inputs(call, task) + (part(call.part)?.outputs ?? []) {
        let count = spec.shape.reduce(1) { $0 > mostElements ? $0 : $0 * $1 }
        let what = "\(call.part): \(shown(spec.name)) has more than \(mostElements) numbers"
        try require(count <= mostElements, what)
      }
    }
  }

  fileprivate func loaded(
    _ part: Part, _ task: String, _ entry: String, _ files: BundleFiles
  ) -> LoadedPart {
    let data = self.files.filter { file in part.data.contains { $0.isExactly(file.path) } }
    return LoadedPart(
      name: part.name, url: files.url(part.file.path), sha256: part.file.sha256, entry: entry,
      hasSeveralEntries: part.entries.contains { !$0.name.isExactly(entry) },
      inputs: part.inputs(task), outputs: part.outputs,
      bytes: data.reduce(part.file.bytes) { $0 + $1.bytes }, versions: versions, options: options)
  }
}

extension ManifestTask {
  fileprivate func reads(_ tokenizer: String) -> Bool {
    flow.calls.flatMap(\.inputs.values).flatMap(\.sources).contains { source in
      if case .tokens(let path) = source.origin { path.isExactly(tokenizer) } else { false }
    }
  }
}

extension Tokenizer {
  fileprivate init(_ files: BundleFiles, _ record: TokenizerRecord) throws {
    let path = "\(record.path)/tokenizer.json"
    let size = try files.size(path)
    try require(size <= mostTokenizerBytes, "\(path) has more than \(mostTokenizerBytes) bytes")
    let bytes = try files.file(path).bytes(at: 0, count: size)
    self = try Tokenizer(try JSON.parse(bytes, path), record)
  }
}

private let mostTokenizerBytes = 32_000_000
