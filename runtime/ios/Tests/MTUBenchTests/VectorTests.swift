import Foundation
import MTUCore
import Testing

@testable import MTUBench

/// The files of `Tests/vectors`, which the driver in Python reads and writes too.
@Suite struct VectorTests {
  private func vector(_ name: String) throws -> Data {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    return try Data(
      contentsOf: folder.appendingPathComponent("../vectors/\(name)").standardizedFileURL)
  }

  private func isSame(_ value: some Encodable, as name: String) throws -> Bool {
    let made = try JSON.parse(Array(JSONEncoder().encode(value)), "made")
    let wanted = try JSON.parse(Array(vector(name)), name)
    return sorted(made) == sorted(wanted)
  }

  /// A value as text whose keys are in order.
  private func sorted(_ value: JSON) -> String {
    switch value {
    case .object(let object):
      let entries = object.entries.sorted { $0.key < $1.key }
      return "{\(entries.map { "\($0.key): \(sorted($0.value))" }.joined(separator: ", "))}"
    case .list(let list): return "[\(list.map(sorted).joined(separator: ", "))]"
    case .number(let number): return "\(number)"
    case .string(let text): return "\"\(text)\""
    case .bool(let bool): return "\(bool)"
    case .null: return "null"
    }
  }

  @Test func theRequestIsRead() throws {
    let request = try BenchRequest(String(decoding: vector("request.json"), as: UTF8.self))
    #expect(request.verb == .verify && request.token == "00112233aabbccdd")
    #expect(request.session == "0a1b2c3d4e5f" && request.coolSeconds == 300)
    #expect(request.folders == ["b-1", "b-1/unet.mlpackage"])
    #expect(request.files.keys.sorted() == ["b-1/unet.mlpackage/Manifest.json"])
  }

  @Test func theAnswerIsWritten() throws {
    var device = BenchDevice(model: "iPhone15,2", os: "iOS 18.4.1 (22E252)", memory: 6_000_000_000)
    (device.arch, device.cores, device.pageSize) = ("arm64", 6, 16_384)
    var answer = BenchAnswer(
      token: "00112233aabbccdd", app: .init(version: "1.0", build: "7"), device: device,
      state: BenchState(
        thermalStatus: 3, battery: 0.5, charging: true, freeMemory: 3_200_000_000, throttled: true))
    answer.status = .failed
    answer.reason = "no verb"
    answer.freeBytes = 20_000_000_000
    answer.wrong = ["b-1/unet.mlpackage/Manifest.json"]
    #expect(try isSame(answer, as: "answer.json"))
  }

  @Test func theResultIsWritten() throws {
    var result = JobResult(runner: .init(name: "MTUBench", version: "1.0"))
    result.status = .measured
    result.reason = nil
    result.engine = .init(name: "Core ML", version: "18.4.1")
    result.loadSeconds = ["unet": 12.5]
    result.loadAgainSeconds = ["unet": 0.125]
    result.firstSeconds = 1.5
    result.sampleSeconds = [0.25, 0.5]
    result.calls = ["unet": .init(count: 2, seconds: [0.25, 0.5])]
    result.memory = .init(
      start: .init(anonymous: 0, file: 1), loaded: .init(anonymous: 2, file: 3),
      run: .init(anonymous: 4, file: 5), peakTotal: 9)
    result.psnr = ["out": 999]
    result.machine = .init(arch: "arm64", cores: 6, pageSize: 16_384)
    #expect(try isSame(result, as: "result.json"))
  }
}
