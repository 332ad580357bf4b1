import Foundation
import Testing

@testable import MTUCore

/// A case of `hostile.json`.
struct Hostile: Sendable, CustomTestStringConvertible {
  let rule: Int
  let name: String
  let edits: [JSON]

  var testDescription: String { "\(rule): \(name)" }

  static let all: [Hostile] = ((try? json("hostile.json"))?.list ?? []).compactMap {
    guard let rule = $0["rule"]?.integer, let name = $0["name"]?.string,
      let edits = $0["edits"]?.list
    else { return nil }
    return Hostile(rule: rule, name: name, edits: edits)
  }
}

@Suite struct HostileTests {
  @Test func everyCaseIsRead() throws {
    let cases = try json("hostile.json").list
    #expect(Hostile.all.count == cases?.count)
    #expect(Hostile.all.count > 100)
  }

  @Test(arguments: Hostile.all)
  func isRefusedByItsRule(_ hostile: Hostile) throws {
    let bundle = try EditedBundle(hostile.edits)
    if hostile.rule == 0 {
      let opened = try ModelBundle.open(bundle.url)
      #expect(opened.target == .onnx && opened.tasks.map(\.name) == ["edit"])
      let parts = Set(opened.manifest.parts.map(\.name))
      let calls = opened.manifest.tasks.flatMap(\.flow.calls)
      if calls.allSatisfy({ parts.contains($0.part) }) {
        _ = try Pipeline(opened, runtime: FakeRuntime())
      } else {
        #expect(throws: MTUError.self) { try Pipeline(opened, runtime: FakeRuntime()) }
      }
      return
    }
    do {
      _ = try ModelBundle.open(bundle.url)
      Issue.record("it was taken")
    } catch let error as MTUError {
      guard case .bundleRefused(let rule, let reason) = error else { throw error }
      #expect(rule == hostile.rule, "\(reason)")
      #expect(!reason.contains("\n"))
    }
  }

  @Test func theManifestIsTheExpectedOne() throws {
    let sha256 = SHA256Hash.of(try bytes(goodBundle.appendingPathComponent("manifest.json")))
    let opened = try ModelBundle.open(goodBundle, trust: .full(manifestSHA256: sha256.uppercased()))
    #expect(opened.manifestSHA256 == sha256)
    let other = String(sha256.reversed())
    #expect(
      throws: MTUError.bundleRefused(
        rule: 0, reason: "manifest.json: its sha256 is not the expected one")
    ) {
      try ModelBundle.open(goodBundle, trust: .full(manifestSHA256: other))
    }
  }

  /// A header of a few bytes a tensor must not become gigabytes in memory.
  @Test func tensorsDoNotOverlap() throws {
    let scratch = try Scratch()
    let file = scratch.url.appendingPathComponent("it")
    let one = #""{}":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#
    let header = Array(
      "{\(["a", "b", "c", "d"].map { one.replacingOccurrences(of: "{}", with: $0) }.joined(separator: ","))}"
        .utf8)
    let content =
      withUnsafeBytes(of: UInt64(header.count).littleEndian) { Array($0) } + header
      + [UInt8](repeating: 0, count: 16)
    try Data(content).write(to: file)
    #expect(throws: Broken(reason: "it: its tensors overlap")) {
      try Safetensors(file.path, size: content.count, "it")
    }
  }

  /// Nothing of a bundle reaches a terminal but plain text.
  @Test func refusalsArePlainText() throws {
    let bundle = try EditedBundle()
    let path: [JSON] = [.string("files"), .number(0), .string("path")]
    try bundle.change(path, .string("a\u{1b}[31m\u{202e}\nb"))
    do {
      _ = try ModelBundle.open(bundle.url)
      Issue.record("it was taken")
    } catch let error as MTUError {
      #expect(error.description.utf8.allSatisfy { (0x20...0x7e).contains($0) })
    }
  }

  /// A file system may hold names that are no text.
  @Test func aNameThatIsNoTextIsRefused() throws {
    let bundle = try EditedBundle()
    let path = bundle.path("unet").path.utf8.map { CChar(bitPattern: $0) } + [0x2f, -1, 0]
    guard let file = fopen(path, "wb") else { return }  // the file system refuses it itself
    fclose(file)
    #expect(throws: MTUError.self) { try ModelBundle.open(bundle.url) }
  }

  @Test func openingEndsWithItsTask() async throws {
    let opening = Task {
      cancelThisTask()
      return try ModelBundle.open(goodBundle)
    }
    await #expect(throws: CancellationError.self) { try await opening.value }
  }

  @Test func anotherTargetIsRefused() throws {
    let bundle = try EditedBundle()
    try bundle.change([.string("target")], .string("tflite"))
    #expect(throws: MTUError.self) { try ModelBundle.open(bundle.url) }
  }

  @Test func whatItIs() throws {
    let bundle = try ModelBundle.open(goodBundle)
    #expect(bundle.name == "edit-onnx-int8" && bundle.height == 32 && bundle.width == 48)
    #expect(bundle.versions["onnxruntime"] != nil)
    let task = try given(bundle.tasks.first)
    #expect(task.takesPrompt && task.takesNegativePrompt && task.fixedPrompt == nil)
    #expect(
      task.guidanceKind == .textImage && task.guidance == GuidanceScales(text: 7.5, image: 1.6))
    #expect(task.pictures == ["image": .picture] && task.tensors.isEmpty)
    #expect(task.tables.contains(TableKey(steps: 4, strength: nil)))
    #expect(
      bundle.partNames(task: "edit") == ["text_encoder", "vae_encoder", "unet", "vae_decoder"])
    let bytes = Memory.allCases.map { bundle.weightBytes(task: "edit", memory: $0) }
    #expect(bytes[0] > 0 && bytes[0] <= bytes[1] && bytes[1] <= bytes[2])
  }
}

@Suite struct ReceiptTests {
  @Test func standsForHashesOfUnchangedFiles() throws {
    let bundle = try EditedBundle()
    let receipt = bundle.scratch.url.appendingPathComponent("receipt")
    let file = bundle.path("unet/model.onnx").path
    let time = Date(timeIntervalSince1970: 1_700_000_000)
    try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: file)
    _ = try ModelBundle.open(bundle.url, trust: .receipt(receipt))
    let first = try bytes(receipt)
    let handle = try FileHandle(forUpdating: URL(fileURLWithPath: file))
    try handle.seek(toOffset: 5000)
    try handle.write(contentsOf: Data([0x5a]))
    try handle.close()
    // Another time: everything is hashed.
    let later = Date(timeIntervalSinceNow: 10)
    try FileManager.default.setAttributes([.modificationDate: later], ofItemAtPath: file)
    #expect { try ModelBundle.open(bundle.url, trust: .receipt(receipt)) } throws: { isRule($0, 6) }
    #expect(try bytes(receipt) == first)
    // The same time, size and number: the receipt stands for the hash.
    try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: file)
    #expect(throws: Never.self) { try ModelBundle.open(bundle.url, trust: .receipt(receipt)) }
    #expect { try ModelBundle.open(bundle.url) } throws: { isRule($0, 6) }
  }

  @Test func liesOutsideTheBundle() throws {
    let bundle = try EditedBundle()
    for name in ["receipt", "unet/receipt", "absent/../receipt"] {
      #expect(throws: MTUError.requestRefused("the receipt lies inside the bundle")) {
        try ModelBundle.open(bundle.url, trust: .receipt(bundle.path(name)))
      }
    }
  }

  @Test func isOfOneManifest() throws {
    let bundle = try EditedBundle()
    let receipt = bundle.scratch.url.appendingPathComponent("receipt")
    _ = try ModelBundle.open(bundle.url, trust: .receipt(receipt))
    let first = try bytes(receipt)
    try bundle.change([.string("name")], .string("other"))
    _ = try ModelBundle.open(bundle.url, trust: .receipt(receipt))
    #expect(try bytes(receipt) != first)
  }

  @Test func ofADamagedBundleIsNotWritten() throws {
    let bundle = try EditedBundle()
    try Data([1]).write(to: bundle.path("README.md"))
    let receipt = bundle.scratch.url.appendingPathComponent("receipt")
    try bundle.change(
      [.string("parts"), .number(0), .string("sha256")], .string(String(repeating: "0", count: 64)))
    #expect { try ModelBundle.open(bundle.url, trust: .receipt(receipt)) } throws: { isRule($0, 6) }
    #expect(!FileManager.default.fileExists(atPath: receipt.path))
  }
}

func isRule(_ error: any Error, _ rule: Int) -> Bool {
  if case .bundleRefused(let broken, _) = error as? MTUError { broken == rule } else { false }
}
