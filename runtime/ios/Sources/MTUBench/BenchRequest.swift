import Foundation
import MTUCore

/// What the driver asks of the app, in the environment variable `MTU_BENCH` (README, "Bench app").
struct BenchRequest: Sendable {
  enum Verb: String, Sendable {
    case describe
    case prepare
    case verify
    case run
    case remove
  }

  let token: String
  let verb: Verb
  /// The folder of the session, below `Documents/bench`.
  let session: String
  /// Folders to make, and files to compare with their sha256; below the session's.
  let folders: [String]
  let files: [String: String]
  /// How long to wait for a phone that is not hot.
  let coolSeconds: Double

  init(_ text: String) throws {
    guard let object = try JSON.parse(Array(text.utf8), "the request").object else {
      throw Broken(reason: "the request is no object")
    }
    let reader = JobReader(object, "the request")
    try reader.only(["format", "token", "verb", "session", "folders", "files", "cool_s"])
    try require(object["format"]?.integer == 1, "the request's format is not 1")
    token = try reader.text("token")
    guard let verb = Verb(rawValue: try reader.text("verb")) else {
      throw Broken(reason: "no verb \(shown(try reader.text("verb")))")
    }
    self.verb = verb
    session = try reader.text("session")
    let isName = session.utf8.allSatisfy { byte in
      let letter = Unicode.Scalar(byte)
      return ("a"..."z").contains(letter) || ("A"..."Z").contains(letter)
        || ("0"..."9").contains(letter) || letter == "-" || letter == "_"
    }
    try require(isName && session.utf8.count <= 64, "session \(shown(session))")
    folders =
      try object["folders"] == nil
      ? []
      : reader.list("folders").map { value in
        guard let path = value.string, isPlain(path) else { throw Broken(reason: "folders") }
        return path
      }
    files = try reader.texts("files")
    for path in files.keys { try require(isPlain(path), "file \(shown(path))") }
    coolSeconds = try reader.number("cool_s", 0...3_600, or: 0)
  }
}

/// The phone, as the app tells it.
public struct BenchDevice: Sendable, Encodable {
  /// Apple's identifier of the model, such as `iPhone15,2`.
  public var model: String
  /// The system with its version and build.
  public var os: String
  /// The processor's instruction set.
  public var arch: String
  /// Cores that are active.
  public var cores: Int?
  /// Bytes of memory.
  public var memory: Int?
  /// Bytes of a page of memory.
  public var pageSize: Int?
  /// Whether it is a simulator: no time of it is a speed.
  public var emulated: Bool

  enum CodingKeys: String, CodingKey {
    case model, os, arch, cores, memory, emulated
    case pageSize = "page_size"
  }

  /// The processor, cores and page size are those of this machine.
  public init(
    model: String, os: String, memory: Int? = nil, emulated: Bool = false
  ) {
    let machine = Machine.current
    self.model = model
    self.os = os
    arch = machine.arch
    cores = machine.cores
    self.memory = memory
    pageSize = machine.pageSize
    self.emulated = emulated
  }
}

/// What changes on a phone while it works.
public struct BenchState: Sendable, Encodable {
  /// 0 nominal, 1 fair, 3 serious, 4 critical.
  public var thermalStatus: Int?
  /// A share of 1.
  public var battery: Double?
  /// Whether it is plugged in; nil where that is unknown.
  public var charging: Bool?
  /// Bytes that the app may still take.
  public var freeMemory: Int?
  /// Whether the wait for a cool phone ended at its limit.
  public var throttled: Bool

  enum CodingKeys: String, CodingKey {
    case battery, charging, throttled
    case thermalStatus = "thermal_status"
    case freeMemory = "free_memory"
  }

  public init(
    thermalStatus: Int? = nil, battery: Double? = nil, charging: Bool? = nil,
    freeMemory: Int? = nil, throttled: Bool = false
  ) {
    self.thermalStatus = thermalStatus
    self.battery = battery
    self.charging = charging
    self.freeMemory = freeMemory
    self.throttled = throttled
  }

  var isHot: Bool { (thermalStatus ?? 0) > 0 }
}

/// What the app leaves in `Documents/bench/answer.json`.
struct BenchAnswer: Sendable, Encodable {
  struct App: Sendable, Encodable {
    let version: String
    let build: String
  }

  var format = 1
  let token: String
  var status = JobStatus.done
  var reason: String?
  let app: App
  let device: BenchDevice
  var state: BenchState
  var freeBytes: Int?
  var wrong: [String] = []

  enum JobStatus: String, Sendable, Encodable {
    case done
    case failed
  }

  enum CodingKeys: String, CodingKey {
    case format, token, status, reason, app, device, state, wrong
    case freeBytes = "free_bytes"
  }
}
