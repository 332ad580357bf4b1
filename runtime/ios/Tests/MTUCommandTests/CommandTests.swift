import Foundation
import MTUCore
import Testing

@testable import MTUCommand

/// What a command line printed, and its exit code.
struct Outcome: Sendable {
  let code: Int32
  let printed: [String]
  let warned: [String]
}

/// Gives zeros, and stands for a runtime of any target.
private struct Zeros: PartRuntime {
  let target: Target

  func open(_ part: LoadedPart) async throws -> any PartSession { ZeroSession(part: part) }
}

private struct ZeroSession: PartSession {
  let part: LoadedPart

  func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor] {
    var outputs: [String: Tensor] = [:]
    for spec in part.outputs { outputs[spec.name] = Tensor.filled(spec.shape, 0) }
    return outputs
  }

  func close() async {}
}

private final class Lines: @unchecked Sendable {  // guarded by its lock
  private let lock = NSLock()
  private var lines: [String] = []

  func append(_ line: String) {
    lock.withLock { lines.append(line) }
  }

  var all: [String] { lock.withLock { lines } }
}

@Suite struct CommandTests {
  private let testdata = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in
    url.deletingLastPathComponent()
  }.appendingPathComponent("testdata")

  private var bundle: String { testdata.appendingPathComponent("edit-onnx-int8").path }

  private func run(_ words: String..., hasRuntime: Bool = true) async -> Outcome {
    let (printed, warned) = (Lines(), Lines())
    let command = Command(
      runtimes: { target in
        if hasRuntime { return Zeros(target: target) }
        throw MTUError.runtimeMissing(target, reason: "this build has none")
      }, print: { printed.append($0) }, warn: { warned.append($0) })
    return Outcome(code: await command.run(words), printed: printed.all, warned: warned.all)
  }

  @Test func helpIsNoError() async {
    for words in [["--help"], ["run", "--help"], ["verify", "-h"], ["bench", "--help"]] {
      let command = Command(runtimes: { Zeros(target: $0) }, print: { _ in }, warn: { _ in })
      #expect(await command.run(words) == 0, "\(words)")
    }
  }

  static let wrong: [([String], Int32, String)] = [
    (["make"], 2, "no such command: make; legal: verify, run, bench"),
    (["verify"], 2, "name a bundle"),
    (["verify", "/absent"], 3, "rule 1: manifest.json is missing"),
    (["verify", "--fast", "/absent"], 2, "no such option: --fast; legal: --task, --min-psnr"),
    (["verify", "--min-psnr", "high", "/absent"], 2, "--min-psnr must be 0.0 to 300.0, got high"),
    (["verify", "--json=yes", "/absent"], 2, "--json takes no value"),
    (["verify", "--task"], 2, "--task needs a value: NAME"),
    (["run", "/absent"], 2, "-o FILE.png is needed"),
    (["run", "/absent", "-o", "a.jpg"], 2, "only .png is written"),
    (["run", "/absent", "-o", "/nowhere/a.png"], 2, "there is no folder"),
    (["run", "/absent", "/more", "-o", "a.png"], 2, "name one bundle"),
    (["run", "/absent", "-o", "a.png", "-o", "b.png"], 2, "--output is given twice"),
    (
      ["run", "/absent", "-o", "a.png", "--memory", "most"], 2,
      "--memory must be one of least, unet, all"
    ),
    (["run", "BUNDLE", "-o", "a.png", "--steps", "5"], 2, "the task needs a picture"),
    (["run", "BUNDLE", "-o", "a.png", "--steps", "x"], 2, "--steps must be 1 to 10000, got x"),
    (["run", "BUNDLE", "-o", "a.png", "--seed", "-1"], 2, "--seed must be 0 to 4294967295"),
    (["run", "BUNDLE", "-o", "a.png", "--seed", "1", "--noise", "a"], 2, "give no --seed"),
    (["run", "BUNDLE", "-o", "a.png", "--mask", "MANIFEST"], 2, "takes no --mask"),
    (["run", "BUNDLE", "-o", "a.png", "--input", "x"], 2, "--input takes NAME=VALUE"),
    (["run", "BUNDLE", "-o", "a.png", "--image", "MANIFEST"], 2, "is no PAM file"),
    (["run", "BUNDLE", "-o", "a.png", "--image", "/absent"], 2, "cannot read"),
    (
      ["run", "BUNDLE", "-o", "a.png", "--image", "MANIFEST", "--image-size", "2x2"], 2,
      "not 4 for each of 2x2"
    ),
    (
      ["run", "BUNDLE", "-o", "a.png", "--image", "MANIFEST", "--image-size", "2"], 2,
      "a size is WIDTHxHEIGHT"
    ),
    (["run", "BUNDLE", "-o", "a.png", "--image-size", "2x2"], 2, "--image-size needs --image"),
    (["run", "BUNDLE", "-o", "a.png", "--noise", "MANIFEST"], 2, "no .npy file"),
    (["run", "BUNDLE", "-o", "a.png", "--task", "t2i"], 2, "the bundle has no task"),
    (["bench"], 2, "name one bundle"),
    (["bench", "BUNDLE", "--samples", "0"], 2, "--samples must be 1 to 1000"),
  ]

  @Test(arguments: wrong.indices)
  func wrongLines(_ index: Int) async throws {
    let (words, code, reason) = Self.wrong[index]
    let full = words.map { word in
      word == "BUNDLE" ? bundle : word == "MANIFEST" ? "\(bundle)/manifest.json" : word
    }
    let warned = Lines()
    let command = Command(
      runtimes: { Zeros(target: $0) }, print: { _ in }, warn: { warned.append($0) })
    let actual = await command.run(full)
    #expect(actual == code)
    #expect(warned.all.count == 1)
    let line = warned.all.first ?? ""
    #expect(line.hasPrefix("error: ") && line.contains(reason), "\(line)")
    #expect(!FileManager.default.fileExists(atPath: "a.png"))
  }

  @Test func aMissingRuntimeIsFour() async {
    let outcome = await run("verify", bundle, hasRuntime: false)
    #expect(outcome.code == 4)
    #expect(outcome.warned == ["error: a bundle for onnx cannot run: this build has none"])
  }

  @Test func belowTheFloorIsOne() async {
    let outcome = await run("verify", bundle, "--json")
    #expect(outcome.code == 1)
    #expect(outcome.printed.count == 1 && outcome.printed[0].contains("\"floor_db\""))
    #expect(outcome.warned.first?.contains("parity below the floor: text_encoder") == true)
    #expect(await run("verify", bundle, "--min-psnr", "0").code == 0)
  }

  @Test func aPictureIsWritten() async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let image = folder.appendingPathComponent("in.pam").path
    let head =
      "P7\n# made here\nWIDTH 2\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    try (Data(head.utf8) + Data([1, 2, 3, 4, 5, 6, 7, 8])).write(to: URL(fileURLWithPath: image))
    let output = folder.appendingPathComponent("out.png").path
    let noise = testdata.appendingPathComponent("noise.npy").path
    let words = ["run", bundle, "-o", output, "--prompt", "x", "--image", image]
    let printed = Lines()
    let command = Command(
      runtimes: { Zeros(target: $0) }, print: { printed.append($0) }, warn: { printed.append($0) })
    #expect(await command.run(words + ["--seed", "7", "--json"]) == 0, "\(printed.all)")
    let first = try Data(contentsOf: URL(fileURLWithPath: output))
    #expect(first.starts(with: [0x89, 0x50, 0x4e, 0x47]))
    #expect(printed.all.first?.contains("\"passes\": 5") == true)
    #expect(await command.run(words) == 2)
    #expect(printed.all.last?.contains("exists; --force replaces it") == true)
    let code = await command.run(words + ["--force", "--noise", noise, "--memory", "all"])
    #expect(code == 0, "\(printed.all)")
  }

  @Test func theMiddle() {
    let numbers: [[Double]] = [[3], [1, 4], [9, 1, 2], [4, 1, 3, 2]]
    #expect(numbers.map(median) == [3, 2.5, 2, 2.5])
  }

  @Test func benchGivesARecord() async {
    let outcome = await run("bench", bundle, "--samples", "2", "--warmup", "0", "--json")
    #expect(outcome.code == 0, "\(outcome.warned)")
    #expect(outcome.printed.first?.contains("\"samples_s\"") == true)
  }
}

@Suite struct PictureFileTests {
  private func pam(_ head: String, _ bytes: [UInt8]) throws -> RawPicture {
    try PAM.read(Data("P7\n\(head)ENDHDR\n".utf8) + Data(bytes), "it")
  }

  @Test func everyDepth() throws {
    let side = "WIDTH 1\nHEIGHT 1\nMAXVAL 255\n"
    #expect(try pam("\(side)DEPTH 1\n", [9]).pixels == .rgba([9, 9, 9, 255]))
    #expect(try pam("\(side)DEPTH 2\n", [9, 8]).pixels == .rgba([9, 9, 9, 8]))
    #expect(try pam("\(side)DEPTH 3\n", [9, 8, 7]).pixels == .rgba([9, 8, 7, 255]))
    #expect(try pam("\(side)DEPTH 4\n", [9, 8, 7, 6]).pixels == .rgba([9, 8, 7, 6]))
    let deep = "WIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 65535\n"
    #expect(try pam(deep, [1, 2]).pixels == .grey16([258]))
  }

  @Test(arguments: [
    "", "WIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\n", "WIDTH 0\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\n",
    "WIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\n", "WIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 100\n",
    "WIDTH 99999999999999999999\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\n",
  ])
  func refuses(_ head: String) {
    #expect(throws: UsageError.self) { try pam(head, [1]) }
  }
}
