import Foundation
import Testing

@testable import MTUCore

@Suite struct SchemaTests {
  @Test func theTextIsTheFile() throws {
    let file = testdata.deletingLastPathComponent().appendingPathComponent("manifest.schema.json")
    let expected = try JSON.parse(try bytes(file), "manifest.schema.json")
    #expect(try JSON.parse(Array(manifestSchema.utf8), "the text") == expected)
  }

  @Test func everyPatternIsUnderstood() throws {
    var patterns: [String] = []
    func walk(_ value: JSON) {
      for (key, inner) in value.object?.entries ?? [] {
        if key == "pattern", let text = inner.string { patterns.append(text) }
        walk(inner)
      }
      for inner in value.list ?? [] { walk(inner) }
    }
    walk(try JSON.parse(Array(manifestSchema.utf8), "the text"))
    #expect(patterns.count > 20)
    for text in patterns { #expect(Pattern(text) != nil, "\(text)") }
  }

  @Test func patternsEndWithTheText() throws {
    let name = try given(Pattern("^[a-z][a-z0-9_]{0,63}$"))
    #expect(name.matches("a") && name.matches("a_1"))
    #expect(
      !name.matches("a\n") && !name.matches("") && !name.matches("A") && !name.matches("a\u{301}"))
    #expect(!name.matches(String(repeating: "a", count: 65)))
    let version = try given(Pattern("^2\\.[0-9]{1,6}$"))
    #expect(version.matches("2.0") && !version.matches("2x0") && !version.matches("2."))
    for text in [
      "a$", "^a", "^a*$", "^(a)$", "^[^a]$", "^[a$", "^a{2$", "^\\d$", "^{1}$", "^[b-a]$",
    ] {
      #expect(Pattern(text) == nil, "\(text)")
    }
  }
}
