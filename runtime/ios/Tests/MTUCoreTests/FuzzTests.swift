import Foundation
import Testing

@testable import MTUCore

@Suite struct FuzzTests {
  static let files = [
    "manifest.json", "constants.safetensors", "goldens.safetensors", "tokenizer/tokenizer.json",
    "unet/model.onnx",
  ]

  /// Mutations of each file; `MTU_MUTATIONS` asks for more.
  static let count = Int(ProcessInfo.processInfo.environment["MTU_MUTATIONS"] ?? "") ?? 20

  /// A bundle with a mutated file, its hash made right again, is refused or opened, and never
  /// ends the program; what opens makes a picture, or refuses to.
  @Test(arguments: files, 0..<count)
  func mutatedFilesNeverCrash(_ name: String, _ seed: Int) async throws {
    var random = Random(seed: UInt64(seed))
    let bundle = try EditedBundle()
    let file = bundle.path(name)
    var content = try bytes(file)
    // The header of a file is where most can go wrong.
    let head = min(content.count, Bool.random(using: &random) ? 300 : content.count)
    var start = Array(content[..<head])
    random.mutate(&start, Int.random(in: 1...3, using: &random))
    content.replaceSubrange(..<head, with: start)
    try Data(content).write(to: file)
    if name != "manifest.json" {
      try bundle.seal(name.contains("model.onnx") ? "unet" : String(name.split(separator: "/")[0]))
    }
    do {
      let opened = try ModelBundle.open(bundle.url)
      let pipeline = try Pipeline(opened, runtime: FakeRuntime(opened.target))
      _ = try await pipeline.picture(goodRequest())
    } catch let error as MTUError {
      #expect(!error.description.isEmpty)
    }
  }

  /// The same of a manifest in which values are exchanged, so that more than the parser is reached.
  @Test(arguments: 0..<4 * count)
  func exchangedValuesNeverCrash(_ seed: Int) async throws {
    var random = Random(seed: UInt64(1000 + seed))
    let bundle = try EditedBundle()
    let document = try JSON.parse(try bytes(bundle.path("manifest.json")), "manifest.json")
    var paths: [[JSON]] = []
    func walk(_ value: JSON, _ path: [JSON]) {
      if !path.isEmpty { paths.append(path) }
      for (key, inner) in value.object?.entries ?? [] { walk(inner, path + [.string(key)]) }
      for (index, inner) in (value.list ?? []).enumerated() {
        walk(inner, path + [.number(Double(index))])
      }
    }
    walk(document, [])
    let numbers: [Double] = [
      0, -1, 0.5, 1, 2, 7, 64, 2_147_483_647, 9_007_199_254_740_991, 1e9, -1e300,
    ]
    for _ in 0..<Int.random(in: 1...2, using: &random) {
      let path = try given(paths.randomElement(using: &random))
      let values: [JSON?] = [
        nil, .null, .bool(true), .string(""), .string("unet"), .list([]), .object(JSONObject()),
        .number(try given(numbers.randomElement(using: &random))),
        .number(try given(numbers.randomElement(using: &random))),
        value(document, try given(paths.randomElement(using: &random))),
        value(document, try given(paths.randomElement(using: &random))),
      ]
      let now = try JSON.parse(try bytes(bundle.path("manifest.json")), "manifest.json")
      guard value(now, path) != nil else { continue }
      try bundle.change(path, try given(values.randomElement(using: &random)))
    }
    do {
      let opened = try ModelBundle.open(bundle.url)
      let pipeline = try Pipeline(
        opened, runtime: FakeRuntime(opened.target), task: opened.tasks[0].name)
      _ = try await pipeline.picture(goodRequest())
    } catch let error as MTUError {
      #expect(!error.description.isEmpty)
    }
  }

  private func value(_ document: JSON, _ path: [JSON]) -> JSON? {
    path.reduce(document) { value, step in
      if let key = step.string { return value?[key] }
      guard let list = value?.list, let index = step.integer, index < list.count else { return nil }
      return list[index]
    }
  }
}

@Suite struct ONNXFileTests {
  @Test func ofTheBundle() throws {
    let content = try bytes(goodBundle.appendingPathComponent("unet/model.onnx"))
    #expect(try content.withUnsafeBytes { try ONNXFile.locations($0, "it") }.isEmpty)
  }

  @Test(
    arguments: [
      ([0x3a, 0x07, 0x2a, 0x05, 0x6a, 0x03, 0x0a, 0x01], "a field that is cut off"),
      ([0x3b], "no protobuf message"), ([0x3a], "a number that is cut off"),
      ([0x08] + [UInt8](repeating: 0xff, count: 10), "a number without an end"),
      ([0x3a] + [UInt8](repeating: 0xff, count: 9) + [0x01], "a field that is cut off"),
    ] as [([UInt8], String)])
  func refuses(_ content: [UInt8], _ reason: String) {
    #expect(throws: Broken(reason: "it: \(reason)")) {
      try content.withUnsafeBytes { try ONNXFile.locations($0, "it") }
    }
  }

  @Test func namesTheFiles() throws {
    func message(_ field: UInt8, _ content: [UInt8]) -> [UInt8] {
      [field << 3 | 2, UInt8(content.count)] + content
    }
    func model(_ name: String) -> [UInt8] {
      let entry = message(1, Array("location".utf8)) + message(2, Array(name.utf8))
      return message(7, message(5, message(13, entry)))
    }
    let names = try model("weights.bin").withUnsafeBytes { try ONNXFile.locations($0, "it") }
    #expect(names == ["weights.bin"])
    for name in ["../weights", "", ".hidden", "-flag", "a/b", "a\0b"] {
      #expect(throws: Broken.self) {
        try model(name).withUnsafeBytes { try ONNXFile.locations($0, "it") }
      }
    }
  }
}
