import Foundation
import MTUCore
import MTUCoreML

@testable import MTUBench

/// A folder with a job over a package of the stub, and an app that runs it.
final class Bench: Sendable {
  let documents: URL
  let session: URL
  let lines = Lines()

  init(extra: String = "", samples: Int = 3) throws {
    documents = FileManager.default.temporaryDirectory
      .appendingPathComponent("mtu-bench-\(UUID().uuidString)")
    session = documents.appendingPathComponent("bench/s1")
    let package = session.appendingPathComponent("b/p.mlpackage")
    try FileManager.default.createDirectory(at: package, withIntermediateDirectories: true)
    let function = """
      {"inputs":[{"name":"x","shape":[1,2],"weight":1}],
       "outputs":[{"name":"y","shape":[1,2],"padding":2,"type":"float16"}]}
      """
    try Data(#"{"functions":{"main":\#(function)}\#(extra.isEmpty ? "" : "," + extra)}"#.utf8)
      .write(to: package.appendingPathComponent("stub.json"))
    let job = JobTests.whole.replacingOccurrences(
      of: #""samples":3"#, with: #""samples":\#(samples)"#)
    try Data(job.utf8).write(to: session.appendingPathComponent("job.json"))
    let want = [tanh(0.25), tanh(-0.5 * cos(1))].map { Float(Float16($0)) }
    try safetensors(["in": [0.25, -0.5], "want": want])
      .write(to: session.appendingPathComponent("tensors.safetensors"))
  }

  deinit { try? FileManager.default.removeItem(at: documents) }

  func app(state: @escaping @Sendable () async -> BenchState = { BenchState() }) -> BenchApp {
    return BenchApp(
      documents: documents,
      engines: ["coreml": { try JobEngine.coreML($0, $1) }],
      version: "1.0", build: "1", device: BenchDevice(model: "iPhone15,2", os: "iOS 18.4"),
      pause: .milliseconds(1), state: state, out: { [lines] in lines.add($0) })
  }

  func json(_ path: String) throws -> [String: Any] {
    let data = try Data(contentsOf: documents.appendingPathComponent(path))
    return try JSONSerialization.jsonObject(with: data) as? [String: Any] ?? [:]
  }

  var runner: JobRunner {
    return JobRunner(
      engines: ["coreml": { try JobEngine.coreML($0, $1) }],
      name: "MTUBench", version: "1.0")
  }

  /// The exit code and the result of the job.
  func run() async throws -> (Int, JobResult) {
    let file = session.appendingPathComponent("result.json")
    let code = await runner.run(job: session.appendingPathComponent("job.json"), result: file) {
      [lines] in lines.add($0)
    }
    return (code, try JSONDecoder().decode(JobResult.self, from: Data(contentsOf: file)))
  }
}

/// Lines that come from any task.
final class Lines: @unchecked Sendable {  // every access holds the lock
  private let lock = NSLock()
  private var lines: [String] = []

  func add(_ line: String) {
    lock.lock()
    defer { lock.unlock() }
    lines.append(line)
  }

  var all: [String] {
    lock.lock()
    defer { lock.unlock() }
    return lines
  }

  /// The names of the events, in order.
  var events: [String] {
    all.compactMap { line in
      let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      return object?["event"] as? String
    }
  }
}

/// A safetensors file of arrays [1, n].
func safetensors(_ arrays: [String: [Float]]) -> Data {
  var body = Data()
  var entries: [String] = []
  for (name, numbers) in arrays.sorted(by: { $0.key < $1.key }) {
    let begin = body.count
    numbers.withUnsafeBytes { body.append(contentsOf: $0) }
    entries.append(
      #""\#(name)":{"dtype":"F32","shape":[1,\#(numbers.count)],"data_offsets":[\#(begin),\#(body.count)]}"#
    )
  }
  let header = Data("{\(entries.joined(separator: ","))}".utf8)
  var file = Data()
  withUnsafeBytes(of: UInt64(header.count).littleEndian) { file.append(contentsOf: $0) }
  return file + header + body
}
