import Foundation
import MTUCore

/// What the sample's screen shows, and what its buttons do. The views hold nothing of their own.
@MainActor
public final class SampleModel {
  /// What the app does.
  public enum Activity: Sendable, Equatable {
    case idle
    case opening
    case checking(String)
    case drawing(pass: Int, of: Int)
  }

  /// Bundles in the app's folder.
  public private(set) var bundles: [URL] = []
  /// The bundle that is open.
  public private(set) var bundle: ModelBundle?
  /// What is being done now.
  public private(set) var activity = Activity.idle
  /// The last picture.
  public private(set) var picture: RGBImage?
  /// The last error, or what the check gave, in one line.
  public private(set) var message: String?
  /// The task of the next picture, by name.
  public var task: String? { didSet { changed() } }
  /// The prompt of the next picture; tasks that take none ignore it.
  public var prompt = ""
  /// Pictures and masks by name; those that the task does not take are not sent.
  public var pictures: [String: RawPicture] = [:]
  /// The seed of its noise.
  public var seed: UInt64 = 7

  /// Called after each change.
  public var onChange: (() -> Void)?

  private let documents: URL
  private let runtime: any PartRuntime
  private let receipts: URL
  /// Whether pictures go on while the app is in the background: no GPU is in use.
  private let runsInBackground: Bool
  private var pipeline: Pipeline?
  private var work: Task<Void, Never>?

  /// `documents` holds bundles, a folder each; `receipts` is a folder of the app's own.
  public init(
    documents: URL, receipts: URL, runtime: any PartRuntime, runsInBackground: Bool
  ) {
    self.documents = documents
    self.receipts = receipts
    self.runtime = runtime
    self.runsInBackground = runsInBackground
  }

  /// Whether something is being done: the buttons rest.
  public var isBusy: Bool { activity != .idle }

  /// The task that a picture is made for.
  public var taskInfo: TaskInfo? {
    bundle?.tasks.first { $0.name == task } ?? bundle?.tasks.first
  }

  /// Looks for bundles: folders with a manifest.
  public func refresh() {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: documents.path)) ?? []
    bundles = names.sorted().map { documents.appendingPathComponent($0) }.filter {
      FileManager.default.fileExists(atPath: $0.appendingPathComponent("manifest.json").path)
    }
    changed()
  }

  /// Opens a bundle: every hash the first time, then by a receipt.
  public func open(_ folder: URL) {
    start(.opening) { [receipts] model in
      await model.letGo()
      let receipt = receipts.appendingPathComponent("\(folder.lastPathComponent).receipt")
      let bundle = try await detached { try ModelBundle.open(folder, trust: .receipt(receipt)) }
      model.bundle = bundle
      model.task = bundle.tasks.first?.name
      model.message = nil
    }
  }

  /// Compares every part and the loop with the goldens: the dB of this device.
  public func check() {
    start(.checking("")) { model in
      let pipeline = try await model.opened()
      let verdicts = try await pipeline.verify { line in
        Task { @MainActor in if model.isBusy { model.show(.checking(line)) } }
      }
      let failed = verdicts.filter { $0.passed == false }
      let worst = verdicts.map(\.psnrDB).min() ?? .infinity
      model.message =
        failed.isEmpty
        ? "passed; the worst of \(verdicts.count) is \(decibels(worst))"
        : "below the floor: "
          + failed.map { "\($0.part) \(decibels($0.psnrDB))" }.joined(separator: ", ")
    }
  }

  /// Makes a picture of the request on the screen.
  public func draw() {
    start(.drawing(pass: 0, of: 0)) { model in
      let pipeline = try await model.opened()
      for try await event in pipeline.generate(model.request) {
        switch event {
        case .loading: break
        case .pass(let number, let of, _, _): model.show(.drawing(pass: number, of: of))
        case .finished(let finished):
          model.picture = finished.picture
          model.message = "\(Int(finished.timings.total.components.seconds)) s"
        }
      }
      try Task.checkCancellation()  // a stream whose task is cancelled just ends
    }
  }

  /// Ends what is being done; the pipeline stays.
  public func cancel() {
    work?.cancel()
  }

  /// The app went to the background: GPU work would be refused there, so it ends.
  public func enterBackground() {
    if !runsInBackground { cancel() }
  }

  /// The system asks for memory: what is not in use goes.
  public func memoryWarning() async {
    await pipeline?.trim()
  }

  /// Waits for the end of what is being done.
  public func finish() async {
    await work?.value
  }

  private var request: Request {
    let takesPrompt = taskInfo?.takesPrompt == true
    let taken = pictures.filter { taskInfo?.pictures[$0.key] != nil }
    return Request(prompt: takesPrompt ? prompt : nil, pictures: taken, noise: .seed(seed))
  }

  private func opened() async throws -> Pipeline {
    guard let bundle else { throw MTUError.requestRefused("no bundle is open") }
    if let pipeline, pipeline.task.name == taskInfo?.name { return pipeline }
    await pipeline?.close()
    let pipeline = try Pipeline(bundle, runtime: runtime, task: taskInfo?.name)
    self.pipeline = pipeline
    return pipeline
  }

  private func letGo() async {
    await pipeline?.close()
    pipeline = nil
    bundle = nil
    picture = nil
  }

  private func start(
    _ activity: Activity, _ body: @escaping @MainActor (SampleModel) async throws -> Void
  ) {
    guard !isBusy else { return }
    show(activity)
    work = Task {
      do {
        try await body(self)
      } catch is CancellationError {
        message = "cancelled"
      } catch {
        message = firstLine(error)
      }
      show(.idle)
    }
  }

  private func show(_ activity: Activity) {
    self.activity = activity
    changed()
  }

  private func changed() {
    onChange?()
  }
}

/// Blocking work off the main actor, cancelled with the calling task.
private func detached<Value: Sendable>(
  _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
  let work = Task.detached { try body() }
  return try await withTaskCancellationHandler {
    try await work.value
  } onCancel: {
    work.cancel()
  }
}

private func decibels(_ number: Double) -> String {
  number == .infinity ? "exact" : "\((number * 10).rounded() / 10) dB"
}
