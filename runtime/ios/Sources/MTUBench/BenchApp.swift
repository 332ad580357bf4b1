import Foundation
import MTUCore

/// The bench app without its screen: one request in, files out.
public struct BenchApp: Sendable {
  /// The name of the environment variable that holds a request.
  public static let variable = "MTU_BENCH"

  private let documents: URL
  private let runner: JobRunner
  private let app: BenchAnswer.App
  private let device: BenchDevice
  private let state: @Sendable () async -> BenchState
  private let out: @Sendable (String) -> Void
  private let pause: Duration

  /// `documents` is the app's folder that the driver reaches; `state` reads the phone's; `out` gets
  /// each event, a JSON object a line.
  public init(
    documents: URL, engines: [String: JobRunner.MakeEngine], version: String, build: String,
    device: BenchDevice, pause: Duration = .seconds(5),
    state: @escaping @Sendable () async -> BenchState,
    out: @escaping @Sendable (String) -> Void
  ) {
    self.documents = documents
    self.device = device
    self.state = state
    self.out = out
    self.pause = pause
    app = .init(version: version, build: build)
    runner = JobRunner(engines: engines, name: "MTUBench", version: version)
  }

  /// Does what a request asks, and leaves the answer; false where it could not be left.
  public func answer(_ text: String) async -> Bool {
    let folder = documents.appendingPathComponent("bench")
    let place = folder.appendingPathComponent("answer.json")
    let events = EventFile(folder.appendingPathComponent("progress.jsonl"), out)
    try? FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    try? FileManager.default.removeItem(at: place)
    events.begin()
    var answer = BenchAnswer(token: "", app: app, device: device, state: await state())
    do {
      let request = try BenchRequest(text)
      answer = BenchAnswer(token: request.token, app: app, device: device, state: answer.state)
      let throttled = try await cool(request.coolSeconds, events)
      answer.wrong = try await work(request, folder, events)
      answer.state = await state()
      answer.state.throttled = throttled
    } catch {
      answer.status = .failed
      answer.reason = firstLine(error)
    }
    answer.freeBytes = free(folder)
    defer { events.tell("ended") }
    return (try? write(answer, to: place)) != nil
  }

  private func work(
    _ request: BenchRequest, _ folder: URL, _ events: EventFile
  ) async throws -> [String] {
    let session = folder.appendingPathComponent(request.session)
    switch request.verb {
    case .describe:
      return []
    case .prepare:
      removeAbandoned(folder, except: request.session)
      for path in [""] + request.folders {
        let url = path.isEmpty ? session : session.appendingPathComponent(path)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
      }
      return []
    case .verify:
      return try request.files.filter { path, hash in
        let url = session.appendingPathComponent(path)
        guard FileManager.default.fileExists(atPath: url.path) else { return true }
        return try artefactSHA256(url) != hash
      }.keys.sorted()
    case .run:
      let job = session.appendingPathComponent("job.json")
      let result = session.appendingPathComponent("result.json")
      await runner.run(job: job, result: result) { events.line($0) }
      return []
    case .remove:
      if FileManager.default.fileExists(atPath: session.path) {
        try FileManager.default.removeItem(at: session)
      }
      return []
    }
  }

  /// Waits until the phone is cool; true where it is still hot at the end.
  private func cool(_ limit: Double, _ events: EventFile) async throws -> Bool {
    let clock = ContinuousClock()
    let end = clock.now + .seconds(limit)
    while limit > 0, case let now = await state(), now.isHot {
      guard clock.now < end else { return true }
      events.tell("hot", ["state": "thermal status \(now.thermalStatus ?? 0)"])
      try await Task.sleep(for: pause)
    }
    return false
  }

  /// Sessions of a driver that did not come back.
  private func removeAbandoned(_ folder: URL, except session: String) {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
    for name in names where name != session {
      let place = folder.appendingPathComponent(name)
      let attributes = try? FileManager.default.attributesOfItem(atPath: place.path)
      let isFolder = attributes?[.type] as? FileAttributeType == .typeDirectory
      let age = (attributes?[.modificationDate] as? Date).map { -$0.timeIntervalSinceNow } ?? 0
      if isFolder, age > BenchApp.abandoned { try? FileManager.default.removeItem(at: place) }
    }
  }

  private static let abandoned: TimeInterval = 86_400

  private func free(_ folder: URL) -> Int? {
    let attributes = try? FileManager.default.attributesOfFileSystem(forPath: folder.path)
    return (attributes?[.systemFreeSize] as? NSNumber)?.intValue
  }
}

/// Events, on the console and in a file that is pulled while the app runs.
private struct EventFile: Sendable {
  private let url: URL
  private let out: @Sendable (String) -> Void

  init(_ url: URL, _ out: @escaping @Sendable (String) -> Void) {
    self.url = url
    self.out = out
  }

  func begin() {
    try? Data().write(to: url)
    tell("started", ["pid": Int(ProcessInfo.processInfo.processIdentifier)])
  }

  func tell(_ name: String, _ values: [String: Any] = [:]) {
    line(event(name, values))
  }

  func line(_ text: String) {
    out(text)
    guard let file = try? FileHandle(forWritingTo: url) else { return }
    defer { try? file.close() }
    _ = try? file.seekToEnd()
    try? file.write(contentsOf: Data((text + "\n").utf8))
  }
}
