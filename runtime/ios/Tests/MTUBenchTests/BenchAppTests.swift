import Foundation
import MTUCore
import Testing

@testable import MTUBench

@Suite struct BenchAppTests {
  private func request(_ verb: String, _ more: String = "") -> String {
    #"{"format":1,"token":"t1","verb":"\#(verb)","session":"s1"\#(more.isEmpty ? "" : "," + more)}"#
  }

  private func answer(_ bench: Bench) throws -> [String: Any] {
    try bench.json("bench/answer.json")
  }

  @Test func itTellsWhatItIs() async throws {
    let bench = try Bench()
    let app = bench.app {
      BenchState(thermalStatus: 0, battery: 0.5, charging: true, freeMemory: 9)
    }
    #expect(await app.answer(request("describe")))
    let answer = try answer(bench)
    #expect(answer["token"] as? String == "t1" && answer["status"] as? String == "done")
    let device = answer["device"] as? [String: Any] ?? [:]
    #expect(device["model"] as? String == "iPhone15,2" && (device["page_size"] as? Int ?? 0) > 0)
    let state = answer["state"] as? [String: Any] ?? [:]
    #expect(state["battery"] as? Double == 0.5 && state["free_memory"] as? Int == 9)
    #expect((answer["free_bytes"] as? Int ?? 0) > 0)
    #expect(bench.lines.events == ["started", "ended"])
  }

  @Test func itMakesFoldersComparesFilesAndRemoves() async throws {
    let bench = try Bench()
    let app = bench.app()
    #expect(await app.answer(request("prepare", #""folders":["a/b","c"]"#)))
    let folder = bench.session.appendingPathComponent("a/b")
    #expect(FileManager.default.fileExists(atPath: folder.path))
    try Data("abc".utf8).write(to: folder.appendingPathComponent("f"))
    let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    let wrong = String(right.reversed())
    let files = #""files":{"a/b/f":"\#(right)","c/none":"\#(right)","job.json":"\#(wrong)"}"#
    #expect(await app.answer(request("verify", files)))
    #expect(try answer(bench)["wrong"] as? [String] == ["c/none", "job.json"])
    #expect(await app.answer(request("remove")))
    #expect(!FileManager.default.fileExists(atPath: bench.session.path))
  }

  @Test func itRunsAJob() async throws {
    let bench = try Bench()
    #expect(await bench.app().answer(request("run")))
    #expect(try bench.json("bench/s1/result.json")["status"] as? String == "measured")
    #expect(bench.lines.events.first == "started" && bench.lines.events.last == "ended")
    let text = try String(
      contentsOf: bench.documents.appendingPathComponent("bench/progress.jsonl"), encoding: .utf8)
    #expect(text.split(separator: "\n").map(String.init) == bench.lines.all)
  }

  @Test func itWaitsForACoolPhone() async throws {
    let bench = try Bench()
    let hot = bench.app { BenchState(thermalStatus: 3) }
    #expect(await hot.answer(request("describe", #""cool_s":0.01"#)))
    #expect((try answer(bench)["state"] as? [String: Any])?["throttled"] as? Bool == true)
    #expect(bench.lines.events.contains("hot"))
    let cool = bench.app { BenchState(thermalStatus: 0) }
    #expect(await cool.answer(request("describe", #""cool_s":600"#)))
    #expect((try answer(bench)["state"] as? [String: Any])?["throttled"] as? Bool == false)
  }

  @Test(arguments: [
    ("no JSON", "the request: no JSON at byte 0"),
    (#"{"format":2}"#, "the request's format is not 1"),
    (#"{"format":1,"token":"t","verb":"fly","session":"s"}"#, #"no verb "fly""#),
    (#"{"format":1,"token":"t","verb":"run","session":"../s"}"#, #"session "../s""#),
    (#"{"format":1,"token":"t","verb":"prepare","session":"s","folders":["../x"]}"#, "folders"),
    (#"{"format":1,"token":"t","verb":"verify","session":"s","files":{"/x":"h"}}"#, #"file "/x""#),
    (
      #"{"format":1,"token":"t","verb":"run","session":"s","x":1}"#,
      #"the request: unknown key "x""#
    ),
  ])
  func aRequestThatIsNotLegalIsAnsweredInOneLine(_ text: String, _ says: String) async throws {
    let bench = try Bench()
    #expect(await bench.app().answer(text))
    let answer = try answer(bench)
    #expect(answer["status"] as? String == "failed")
    #expect(answer["reason"] as? String == says)
  }

  @Test func sessionsThatNobodyEndedGoAfterADay() async throws {
    let bench = try Bench()
    let old = bench.documents.appendingPathComponent("bench/old")
    let new = bench.documents.appendingPathComponent("bench/new")
    for url in [old, new] {
      try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    }
    try FileManager.default.setAttributes(
      [.modificationDate: Date().addingTimeInterval(-90_000)], ofItemAtPath: old.path)
    #expect(await bench.app().answer(request("prepare")))
    #expect(!FileManager.default.fileExists(atPath: old.path))
    #expect(FileManager.default.fileExists(atPath: new.path))
  }
}
