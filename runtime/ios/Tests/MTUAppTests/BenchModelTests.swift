import Foundation
import MTUBench
import Testing

@testable import MTUApp

@MainActor
@Suite struct BenchModelTests {
  private func app(_ folder: URL) -> BenchApp {
    BenchApp(
      documents: folder, engines: [:], version: "1.0", build: "1",
      device: BenchDevice(model: "m", os: "o"), state: { BenchState() }, out: { _ in })
  }

  @Test func aRequestIsServedOnce() async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: folder) }
    let model = BenchModel()
    let request = #"{"format":1,"token":"t","verb":"describe","session":"s"}"#
    #expect(await model.serve([BenchApp.variable: request], app(folder)))
    #expect(model.isDone && model.lines == ["done"])
    let answer = folder.appendingPathComponent("bench/answer.json")
    #expect(FileManager.default.fileExists(atPath: answer.path))
  }

  @Test func withoutARequestItWaits() async throws {
    let model = BenchModel()
    #expect(await model.serve([:], app(URL(fileURLWithPath: "/nowhere"))) == false)
    #expect(!model.isDone && model.lines.count == 1)
  }

  @Test func onlyTheLastLinesStay() {
    let model = BenchModel()
    for number in 1...100 { model.add("\(number)") }
    #expect(model.lines.count == 30 && model.lines.last == "100")
  }
}
