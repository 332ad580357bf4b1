import Testing

@testable import MTUCore

@Suite struct JSONTests {
  static let legal: [(String, JSON)] = [
    ("null", .null), (" true ", .bool(true)), ("-0", .number(0)), ("24.0", .number(24)),
    ("1e2", .number(100)), ("1E-2", .number(0.01)), ("\"\\u00e9\"", .string("\u{e9}")),
    ("\"\\ud83d\\ude00\"", .string("\u{1f600}")),
    ("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", .string("\"\\/\u{8}\u{c}\n\r\t")),
    ("[]", .list([])), ("[1 , 2]", .list([.number(1), .number(2)])), ("\"\\u0000\"", .string("\0")),
    ("9007199254740991", .number(9_007_199_254_740_991)), ("1e-400", .number(0)),
  ]

  @Test(arguments: legal)
  func reads(_ text: String, _ value: JSON) throws {
    #expect(try JSON.parse(Array(text.utf8), "it") == value)
  }

  @Test(arguments: [
    "", " ", "NaN", "Infinity", "-", "01", "1.", ".5", "1e", "1e+", "1e999", "-1e999", "+1", "0x1",
    "nul", "True", "[1,]", "[1 2]", "[", "{", "{\"a\"}", "{\"a\":1,}", "{a:1}", "{\"a\":1 \"b\":2}",
    "\"", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"", "\"\\udc00\"",
    "\"\\ud800\\u0041\"", "\"\\ud800x\"", "\"\n\"", "1 2", "{\"a\":1,\"a\":2}",
    "{\"a\":1,\"\\u0061\":2}", "\u{feff}1", "[1]]", "\"\\", "\"\\u",
  ])
  func refuses(_ text: String) {
    #expect(throws: Broken.self) { try JSON.parse(Array(text.utf8), "it") }
  }

  @Test(
    arguments: [
      [0x22, 0xff, 0x22], [0x22, 0xc0, 0x80, 0x22], [0x22, 0xed, 0xa0, 0x80, 0x22],
      [0x22, 0xe9, 0x22],
      [0x22, 0xf4, 0x90, 0x80, 0x80, 0x22],
    ] as [[UInt8]])
  func refusesWhatIsNoUTF8(_ bytes: [UInt8]) {
    #expect(throws: Broken.self) { try JSON.parse(bytes, "it") }
  }

  @Test func keysAreCodePoints() throws {
    let value = try JSON.parse(
      Array("{\"\u{e9}\":1,\"e\u{301}\":2,\"K\":3,\"\u{212a}\":4}".utf8), "it")
    #expect(value.object?.count == 4)
    #expect(value["e\u{301}"] == .number(2))
    #expect(value["\u{212a}"] == .number(4))
  }

  @Test func depthIsAtMost64() throws {
    func nested(_ depth: Int) -> [UInt8] {
      Array((String(repeating: "[", count: depth) + String(repeating: "]", count: depth)).utf8)
    }
    #expect(throws: Never.self) { try JSON.parse(nested(64), "it") }
    #expect(throws: Broken.self) { try JSON.parse(nested(65), "it") }
    #expect(throws: Broken.self) { try JSON.parse(nested(100_000), "it") }
  }

  @Test func aTrueIsNoNumber() throws {
    #expect(try JSON.parse(Array("true".utf8), "it").number == nil)
    #expect(try JSON.parse(Array("1.5".utf8), "it").integer == nil)
    #expect(try JSON.parse(Array("1e300".utf8), "it").integer == nil)
  }

  /// Mutated texts end in a value or in `Broken`.
  @Test func mutationsNeverCrash() throws {
    var random = Random(seed: 1)
    let text = try bytes(goodBundle.appendingPathComponent("manifest.json"))
    for _ in 0..<300 {
      var mutated = Array(text.prefix(Int.random(in: 0...3000, using: &random)))
      random.mutate(&mutated, Int.random(in: 0...4, using: &random))
      do { _ = try JSON.parse(mutated, "it") } catch is Broken {}
    }
  }
}
