import Foundation
import MTUCore

/// What a runner is asked, of the form of `runtime/android/runner/README.md`.
struct Job: Sendable {
  /// An artefact to load and its entry.
  struct Part: Sendable {
    /// Relative to the job's folder.
    let path: String
    let entry: String
    let inputs: [TensorSpec]
    let outputs: [TensorSpec]
  }

  enum Step: Sendable {
    case call(part: String, inputs: [String: String], outputs: [String: String])
    case sum(terms: [(factor: Double, register: String)], out: String)
    case scale(by: Double, register: String, out: String)
    case divide(by: Double, register: String, out: String)
    case concat(axis: Int, registers: [String], out: String)
    case slice(begin: Int, register: String, out: String)
  }

  let engine: String
  let options: [String: String]
  let threads: Int
  let cpus: String
  let parts: [String: Part]
  let tensors: String?
  let program: [Step]
  let expected: [String: String]
  let loadAgain: Bool
  let warmup: Int
  let samples: Int
  let cooldownMilliseconds: Double
  let deadlineSeconds: Double

  /// Reads a job. Throws `Broken` in one line: an unknown key, a value that is not legal.
  init(_ bytes: [UInt8], _ what: String) throws {
    guard let object = try JSON.parse(bytes, what).object else {
      throw Broken(reason: "\(what) is no object")
    }
    let reader = JobReader(object, what)
    try reader.only([
      "format", "engine", "library", "options", "threads", "cpus", "parts", "tensors", "program",
      "expected", "outputs", "keep", "load_again", "warmup", "samples", "cooldown_ms", "deadline_s",
    ])
    try require(object["format"]?.integer == 1, "\(what): format is not 1")
    for key in ["library", "outputs"] {
      try require(object[key] ?? .null == .null, "\(what): \(key) is for runners with a shell")
    }
    engine = try reader.text("engine")
    options = try reader.texts("options")
    threads = try reader.integer("threads", 0...1024, or: 0)
    cpus = try object["cpus"] == nil ? "all" : reader.text("cpus")
    parts = try reader.object("parts").mapObjects { try Part($0, "\(what): part \(shown($1))") }
    try require((1...64).contains(parts.count), "\(what): \(parts.count) parts; legal: 1 to 64")
    tensors = try object["tensors"] ?? .null == .null ? nil : reader.path("tensors")
    program = try reader.list("program").enumerated().map {
      try Step($1, "\(what): program[\($0)]")
    }
    try require((1...100_000).contains(program.count), "\(what): \(program.count) instructions")
    expected = try reader.texts("expected")
    loadAgain = try reader.bool("load_again")
    warmup = try reader.integer("warmup", 0...100_000, or: 0)
    samples = try reader.integer("samples", 1...100_000, or: nil)
    cooldownMilliseconds = try reader.number("cooldown_ms", 0...1e7, or: 0)
    deadlineSeconds = try reader.number("deadline_s", 0...604_800, or: 600)
  }
}

extension Job.Part {
  init(_ object: JSONObject, _ what: String) throws {
    let reader = JobReader(object, what)
    try reader.only(["path", "entry", "inputs", "outputs"])
    path = try reader.path("path")
    entry = try reader.text("entry")
    inputs = try Job.Part.specs(reader, "inputs")
    outputs = try Job.Part.specs(reader, "outputs")
  }

  private static func specs(_ reader: JobReader, _ key: String) throws -> [TensorSpec] {
    try reader.list(key).map { value in
      let what = "\(reader.what): \(key)"
      guard let object = value.object else { throw Broken(reason: "\(what): no object") }
      let spec = JobReader(object, what)
      try spec.only(["name", "shape", "dtype"])
      let extents = try spec.list("shape").compactMap { $0.integer }.filter {
        (1...1 << 31).contains($0)
      }
      try require(
        try extents.count == spec.list("shape").count && extents.count <= 8, "\(what): shape")
      guard let type = ElementType(rawValue: try spec.text("dtype")) else {
        throw Broken(reason: "\(what): dtype; legal: float32, int32")
      }
      return TensorSpec(name: try spec.text("name"), shape: extents, type: type)
    }
  }
}

extension Job.Step {
  init(_ value: JSON, _ what: String) throws {
    guard let object = value.object else { throw Broken(reason: "\(what): no object") }
    let reader = JobReader(object, what)
    let op = try reader.text("op")
    switch op {
    case "call":
      try reader.only(["op", "part", "inputs", "outputs"])
      self = .call(
        part: try reader.text("part"), inputs: try reader.texts("inputs"),
        outputs: try reader.texts("outputs"))
    case "sum":
      try reader.only(["op", "terms", "out"])
      let terms = try reader.list("terms").map { term in
        guard let pair = term.list, pair.count == 2, let factor = pair[0].number,
          let register = pair[1].string
        else { throw Broken(reason: "\(what): terms are [factor, register]") }
        return (factor: factor, register: register)
      }
      try require(!terms.isEmpty, "\(what): no terms")
      self = .sum(terms: terms, out: try reader.text("out"))
    case "scale", "divide":
      try reader.only(["op", "by", "in", "out"])
      let by = try reader.number(
        "by", -.greatestFiniteMagnitude...(.greatestFiniteMagnitude), or: nil)
      let (register, out) = (try reader.text("in"), try reader.text("out"))
      try require(op == "scale" || Float(by) != 0, "\(what): divide by 0")
      self =
        op == "scale"
        ? .scale(by: by, register: register, out: out)
        : .divide(by: by, register: register, out: out)
    case "concat":
      try reader.only(["op", "axis", "in", "out"])
      let registers = try reader.list("in").map { value in
        guard let name = value.string else { throw Broken(reason: "\(what): in") }
        return name
      }
      try require(!registers.isEmpty, "\(what): in is empty")
      self = .concat(
        axis: try reader.integer("axis", 0...7, or: nil), registers: registers,
        out: try reader.text("out"))
    case "slice":
      try reader.only(["op", "begin", "in", "out"])
      self = .slice(
        begin: try reader.integer("begin", 0...1 << 31, or: nil), register: try reader.text("in"),
        out: try reader.text("out"))
    default:
      throw Broken(reason: "\(what): op \(shown(op))")
    }
  }
}

/// Keys of an object, each with one clear error.
struct JobReader {
  let object: JSONObject
  let what: String

  init(_ object: JSONObject, _ what: String) {
    self.object = object
    self.what = what
  }

  func only(_ legal: Set<String>) throws {
    for key in object.keys where !legal.contains(key) {
      throw Broken(reason: "\(what): unknown key \(shown(key))")
    }
  }

  func text(_ key: String) throws -> String {
    guard let text = object[key]?.string, !text.isEmpty else {
      throw Broken(reason: "\(what): \(key) is no text")
    }
    return text
  }

  /// A path that stays in the job's folder.
  func path(_ key: String) throws -> String {
    let path = try text(key)
    try require(isPlain(path), "\(what): \(shown(path)) leads out of the job's folder")
    return path
  }

  func list(_ key: String) throws -> [JSON] {
    guard let list = object[key]?.list else { throw Broken(reason: "\(what): \(key) is no list") }
    return list
  }

  func object(_ key: String) throws -> JSONObject {
    guard let value = object[key]?.object else {
      throw Broken(reason: "\(what): \(key) is no object")
    }
    return value
  }

  /// An object of texts; empty where it is missing.
  func texts(_ key: String) throws -> [String: String] {
    guard object[key] != nil else { return [:] }
    return try object(key).entries.reduce(into: [:]) { texts, entry in
      guard let text = entry.value.string else {
        throw Broken(reason: "\(what): \(key) \(shown(entry.key)) is no text")
      }
      texts[entry.key] = text
    }
  }

  func bool(_ key: String) throws -> Bool {
    guard let value = object[key] else { return false }
    guard let bool = value.bool else { throw Broken(reason: "\(what): \(key) is no truth value") }
    return bool
  }

  func integer(_ key: String, _ legal: ClosedRange<Int>, or fallback: Int?) throws -> Int {
    if object[key] == nil, let fallback { return fallback }
    guard let number = object[key]?.integer, legal.contains(number) else {
      throw Broken(reason: "\(what): \(key); legal: \(legal.lowerBound) to \(legal.upperBound)")
    }
    return number
  }

  func number(_ key: String, _ legal: ClosedRange<Double>, or fallback: Double?) throws -> Double {
    if object[key] == nil, let fallback { return fallback }
    guard let number = object[key]?.number, legal.contains(number) else {
      throw Broken(reason: "\(what): \(key); legal: \(legal.lowerBound) to \(legal.upperBound)")
    }
    return number
  }
}

extension JSONObject {
  func mapObjects<Result>(_ make: (JSONObject, String) throws -> Result) throws -> [String: Result]
  {
    try entries.reduce(into: [:]) { results, entry in
      guard let object = entry.value.object else {
        throw Broken(reason: "\(shown(entry.key)) is no object")
      }
      results[entry.key] = try make(object, entry.key)
    }
  }
}

/// Whether a relative path stays below where it begins.
func isPlain(_ path: String) -> Bool {
  !path.isEmpty && !path.hasPrefix("/") && !path.unicodeScalars.contains("\0")
    && path.split(separator: "/", omittingEmptySubsequences: false)
      .allSatisfy { $0 != "" && $0 != "." && $0 != ".." }
}
