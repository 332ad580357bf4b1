import Foundation
import MTUCore
import Testing

@testable import MTUBench

@Suite struct JobRunnerTests {
  @Test func aJobIsMeasuredAndCompared() async throws {
    let bench = try Bench()
    let (code, result) = try await bench.run()
    #expect(code == 0, "\(result.reason ?? "")")
    #expect(result.status == .measured && result.reason == nil)
    #expect(result.sampleSeconds.count == 3 && result.firstSeconds != nil)
    #expect(result.calls["p"]?.count == 3)
    #expect(Set(result.loadSeconds.keys) == ["p"] && Set(result.loadAgainSeconds.keys) == ["p"])
    #expect(result.psnr["out"] == 999)  // equal to the float16 of the formula
    #expect(result.engine?.name == "Core ML")
    #expect((result.memory?.run.anonymous ?? 0) > 0)
    #expect(
      bench.lines.events == ["loaded", "sample", "sample", "sample", "sample", "loaded again"])
  }

  @Test func resultsHaveTheKeysOfTheRunnersPage() async throws {
    let bench = try Bench()
    _ = try await bench.run()
    let result = try bench.json("bench/s1/result.json")
    let legal: Set = [
      "format", "status", "reason", "runner", "engine", "load_s", "load_again_s", "first_s",
      "samples_s", "calls", "memory", "psnr_db", "machine",
    ]
    #expect(Set(result.keys).isSubset(of: legal))
    #expect(result["format"] as? Int == 1)
    let memory = result["memory"] as? [String: Any] ?? [:]
    #expect(Set(memory.keys).isSubset(of: ["start", "loaded", "run", "peak_total"]))
  }

  @Test(arguments: [
    (#""engine":"coreml""#, #""engine":"onnx""#, 4, #"no engine "onnx"; legal: coreml"#),
    (#"{"compute_unit":"ALL"}"#, #"{"compute_unit":"TPU"}"#, 4, #"compute_unit "TPU"; legal: ALL"#),
    (#"{"compute_unit":"ALL"}"#, #"{"x":"1"}"#, 4, #"no option "x"; legal: compute_unit"#),
    (#""threads":0"#, #""threads":2"#, 2, "threads and cpus are the system's here"),
    ("b/p.mlpackage", "b/q.mlpackage", 3, "b/q.mlpackage is missing"),
    ("tensors.safetensors", "none.safetensors", 3, ""),
    (#""in"}"#, #""nothing"}"#, 2, #"program[0]: no register "nothing""#),
    (#""samples""#, #""sample""#, 2, #"job.json: unknown key "sample""#),
  ])
  func whatCannotRunHasItsExitCode(
    _ old: String, _ new: String, _ code: Int, _ says: String
  ) async throws {
    let bench = try Bench()
    let file = bench.session.appendingPathComponent("job.json")
    let text = try String(contentsOf: file, encoding: .utf8)
    #expect(text.contains(old))
    try Data(text.replacingOccurrences(of: old, with: new).utf8).write(to: file)
    let (actual, result) = try await bench.run()
    #expect(actual == code)
    #expect(
      result.status == .failed && result.reason?.hasPrefix(says) == true, "\(result.reason ?? "")")
  }

  @Test func aPartThatFailsLeavesWhatWasMeasured() async throws {
    let bench = try Bench(extra: #""fails":["predict"]"#)
    let (code, result) = try await bench.run()
    #expect(code == 5)
    #expect(result.reason == "p cannot be run: the stub was told to fail: predict")
    #expect(Set(result.loadSeconds.keys) == ["p"] && result.sampleSeconds.isEmpty)
  }

  @Test func whatIsMeasuredIsWrittenOnTheWay() async throws {
    let bench = try Bench(extra: #""predictSeconds":0.6"#, samples: 100_000)
    let file = bench.session.appendingPathComponent("result.json")
    let work = Task { try await bench.run() }
    var partial: JobResult?
    while partial.map(\.sampleSeconds.count) ?? 0 < 1 {
      try await Task.sleep(for: .milliseconds(20))
      partial = (try? Data(contentsOf: file)).flatMap {
        try? JSONDecoder().decode(JobResult.self, from: $0)
      }
    }
    #expect(partial?.status == .failed)
    #expect(partial?.reason == "the app ended before the job did")
    work.cancel()
    _ = try await work.value
  }
}
