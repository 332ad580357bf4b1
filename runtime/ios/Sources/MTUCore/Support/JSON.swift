/// A JSON value as rule 1 of the contract wants it.
package enum JSON: Sendable, Equatable {
  case null
  case bool(Bool)
  case number(Double)
  case string(String)
  case list([JSON])
  case object(JSONObject)

  package var object: JSONObject? {
    if case .object(let object) = self { object } else { nil }
  }

  package var list: [JSON]? {
    if case .list(let list) = self { list } else { nil }
  }

  package var string: String? {
    if case .string(let string) = self { string } else { nil }
  }

  package var number: Double? {
    if case .number(let number) = self { number } else { nil }
  }

  package var bool: Bool? {
    if case .bool(let bool) = self { bool } else { nil }
  }

  /// A whole number, however it is written: `24.0` is one as `24` is.
  package var integer: Int? {
    number.flatMap { Int(exactly: $0) }
  }
}

/// The keys and values of an object, in their order. No key is there twice.
package struct JSONObject: Sendable, Equatable {
  package private(set) var keys: [String] = []
  private var values: [Exact: JSON] = [:]

  package var count: Int { keys.count }

  package init() {}

  package subscript(key: String) -> JSON? {
    values[Exact(key)]
  }

  /// Adds a key; false where it is there.
  package mutating func insert(_ key: String, _ value: JSON) -> Bool {
    guard values.updateValue(value, forKey: Exact(key)) == nil else { return false }
    keys.append(key)
    return true
  }

  package var entries: [(key: String, value: JSON)] {
    keys.map { ($0, values[Exact($0)] ?? .null) }
  }
}

extension JSON {
  /// The value of UTF-8 bytes. Throws `Broken` with the place. `what` names the file.
  ///
  /// Foundation's parsers keep the last of two equal keys, and take 1e999 and half a surrogate
  /// pair.
  package static func parse(_ bytes: [UInt8], _ what: String) throws -> JSON {
    try require(
      String(decoding: bytes, as: UTF8.self).utf8.elementsEqual(bytes), "\(what) is not UTF-8")
    var parser = JSONParser(bytes: bytes, what: what)
    return try parser.document()
  }
}

private let deepest = 64

private struct JSONParser {
  let bytes: [UInt8]
  let what: String
  var at = 0

  init(bytes: [UInt8], what: String) {
    self.bytes = bytes
    self.what = what
  }

  mutating func document() throws -> JSON {
    let value = try self.value(depth: 1)
    space()
    try require(at == bytes.count, "\(what): more than one value")
    return value
  }

  private var next: UInt8? {
    at < bytes.count ? bytes[at] : nil
  }

  private mutating func space() {
    while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x0d { at += 1 }
  }

  private mutating func skips(_ letter: Unicode.Scalar) -> Bool {
    space()
    guard next == UInt8(ascii: letter) else { return false }
    at += 1
    return true
  }

  private mutating func value(depth: Int) throws -> JSON {
    space()
    switch next {
    case UInt8(ascii: "{"), UInt8(ascii: "["):
      let places = "\(what): more than \(deepest) objects and lists inside one another"
      try require(depth <= deepest, places)
      return try skips("{") ? object(depth) : list(depth)
    case UInt8(ascii: "\""):
      return .string(try string())
    default:
      for (word, value) in [("true", JSON.bool(true)), ("false", .bool(false)), ("null", .null)]
      where bytes[at...].starts(with: word.utf8) {
        at += word.utf8.count
        return value
      }
      return .number(try number())
    }
  }

  private mutating func object(_ depth: Int) throws -> JSON {
    var object = JSONObject()
    if skips("}") { return .object(object) }
    repeat {
      space()
      try require(next == UInt8(ascii: "\""), "\(what): no key at byte \(at)")
      let key = try string()
      try require(skips(":"), "\(what): no colon at byte \(at)")
      let isNew = object.insert(key, try value(depth: depth + 1))
      try require(isNew, "\(what): key \(shown(key)) is there twice")
    } while skips(",")
    try require(skips("}"), "\(what): an object without an end at byte \(at)")
    return .object(object)
  }

  private mutating func list(_ depth: Int) throws -> JSON {
    _ = skips("[")
    var list: [JSON] = []
    if skips("]") { return .list(list) }
    repeat { list.append(try value(depth: depth + 1)) } while skips(",")
    try require(skips("]"), "\(what): a list without an end at byte \(at)")
    return .list(list)
  }

  // ----------------------------------------------------------------------------------- numbers

  private mutating func digits() -> Int {
    let begin = at
    while let byte = next, (0x30...0x39).contains(byte) { at += 1 }
    return at - begin
  }

  private mutating func number() throws -> Double {
    let begin = at
    if next == UInt8(ascii: "-") { at += 1 }
    let leadsWithZero = next == UInt8(ascii: "0")
    let count = digits()
    try require(count > 0 && (count == 1 || !leadsWithZero), "\(what): no JSON at byte \(begin)")
    if next == UInt8(ascii: ".") {
      at += 1
      try require(digits() > 0, "\(what): no digit at byte \(at)")
    }
    if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
      at += 1
      if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { at += 1 }
      try require(digits() > 0, "\(what): no digit at byte \(at)")
    }
    let text = String(decoding: bytes[begin..<at], as: UTF8.self)
    let number = Double(text)
    try require(number?.isFinite == true, "\(what): \(shown(text)) is not finite")
    return number ?? 0
  }

  // ------------------------------------------------------------------------------------- texts

  private mutating func string() throws -> String {
    at += 1
    var text: [UInt8] = []
    while true {
      let begin = at
      while let byte = next, byte >= 0x20, byte != 0x22, byte != 0x5c { at += 1 }
      text += bytes[begin..<at]
      let last = next
      try require(last == 0x22 || last == 0x5c, "\(what): a string without an end at byte \(at)")
      at += 1
      if last == 0x22 { return String(decoding: text, as: UTF8.self) }
      text += String(try escape()).utf8
    }
  }

  private mutating func escape() throws -> Unicode.Scalar {
    let letter = next
    at += 1
    switch letter {
    case UInt8(ascii: "\""): return "\""
    case UInt8(ascii: "\\"): return "\\"
    case UInt8(ascii: "/"): return "/"
    case UInt8(ascii: "b"): return "\u{8}"
    case UInt8(ascii: "f"): return "\u{c}"
    case UInt8(ascii: "n"): return "\n"
    case UInt8(ascii: "r"): return "\r"
    case UInt8(ascii: "t"): return "\t"
    case UInt8(ascii: "u"): return try codePoint()
    default: throw Broken(reason: "\(what): no such escape at byte \(at - 1)")
    }
  }

  private mutating func codePoint() throws -> Unicode.Scalar {
    let unit = try fourDigits()
    if let scalar = Unicode.Scalar(unit) { return scalar }
    let half = "\(what): half a surrogate pair at byte \(at)"
    try require(unit < 0xdc00 && bytes[at...].starts(with: "\\u".utf8), half)
    at += 2
    let low = try fourDigits()
    try require((0xdc00...0xdfff).contains(low), half)
    let pair = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
    return Unicode.Scalar(pair) ?? "\u{fffd}"
  }

  private mutating func fourDigits() throws -> UInt32 {
    let end = min(at + 4, bytes.count)
    let text = String(decoding: bytes[at..<end], as: UTF8.self)
    let isHex = text.utf8.count == 4 && text.utf8.allSatisfy { Character(.init($0)).isHexDigit }
    try require(isHex, "\(what): an escape without four digits at byte \(at)")
    at = end
    return UInt32(text, radix: 16) ?? 0
  }
}
