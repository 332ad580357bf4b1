import Testing

@testable import MTUCore

/// A text of `tokens.json`.
struct TokenVector: Sendable, CustomTestStringConvertible {
  let hasAdded: Bool
  let text: String
  let ids: [Int32]
  let cut: String

  var testDescription: String { "\(shown(text))\(hasAdded ? ", added tokens" : "")" }

  static let all: [TokenVector] = ["texts", "texts_with_added_tokens"].flatMap { key in
    ((try? json("tokens.json"))?[key]?.list ?? []).compactMap { value -> TokenVector? in
      guard let text = value["text"]?.string, let cut = value["cut"]?.string else { return nil }
      let ids = (value["ids"]?.list ?? []).compactMap { $0.integer.flatMap(Int32.init(exactly:)) }
      return TokenVector(hasAdded: key != "texts", text: text, ids: ids, cut: cut)
    }
  }
}

@Suite struct TextTests {
  static let document = Result {
    try JSON.parse(try bytes(goodBundle.appendingPathComponent("tokenizer/tokenizer.json")), "it")
  }
  static let record = Result {
    let bundle = try ModelBundle.open(goodBundle)
    return try given(bundle.manifest.tokenizers.first)
  }
  static let plain = Result { try Tokenizer(try document.get(), try record.get()) }
  static let extended = Result {
    let added = try given(try json("tokens.json")["added_tokens"]?.list)
    let own = try given(try document.get()["added_tokens"]?.list)
    let key = [JSON.string("added_tokens")]
    let value = try document.get().with(.list(own + added), at: key[...])
    return try Tokenizer(value, try record.get())
  }

  @Test func everyTextIsRead() throws {
    let document = try json("tokens.json")
    let count = ["texts", "texts_with_added_tokens"].reduce(0) {
      $0 + (document[$1]?.list?.count ?? 0)
    }
    #expect(TokenVector.all.count == count && count > 10)
  }

  @Test(arguments: TokenVector.all)
  func encodes(_ vector: TokenVector) throws {
    let tokenizer = try (vector.hasAdded ? Self.extended : Self.plain).get()
    let (ids, cut) = tokenizer.encode(vector.text)
    #expect(ids.ints == vector.ids)
    #expect(cut.isExactly(vector.cut))
  }

  @Test func anyTextHasIDs() throws {
    let tokenizer = try Self.extended.get()
    var random = Random(seed: 3)
    for _ in 0..<200 {
      var text = String.UnicodeScalarView()
      for _ in 0..<Int.random(in: 0...60, using: &random) {
        let value = UInt32.random(
          in: 0...(Bool.random(using: &random) ? 0x2ff : 0x10ffff), using: &random)
        if let scalar = Unicode.Scalar(value) { text.append(scalar) }
      }
      let (ids, cut) = tokenizer.encode(String(text))
      #expect(ids.shape == [1, 77])
      #expect(String(text).unicodeScalars.count >= cut.unicodeScalars.count)
    }
  }

  /// The merges by the letter of the contract, for comparison.
  private func merged(_ ids: [Int32], _ merges: [TokenizerFile.Pair: TokenizerFile.Merge])
    -> [Int32]
  {
    var ids = ids
    while true {
      var best: (at: Int, merge: TokenizerFile.Merge)?
      for at in ids.indices.dropLast() {
        let pair = TokenizerFile.Pair(left: ids[at], right: ids[at + 1])
        if let merge = merges[pair], merge.rank < best?.merge.rank ?? Int.max { best = (at, merge) }
      }
      guard let best else { return ids }
      ids.replaceSubrange(best.at...best.at + 1, with: [best.merge.id])
    }
  }

  @Test func mergesAreThoseOfTheLowestRank() {
    var random = Random(seed: 6)
    for _ in 0..<200 {
      var merges: [TokenizerFile.Pair: TokenizerFile.Merge] = [:]
      for rank in 0..<12 {
        let pair = TokenizerFile.Pair(
          left: Int32.random(in: 0..<5, using: &random),
          right: Int32.random(in: 0..<5, using: &random))
        merges[pair] = TokenizerFile.Merge(rank: rank, id: Int32.random(in: 0..<5, using: &random))
      }
      let count = Int.random(in: 0...30, using: &random)
      let ids = (0..<count).map { _ in Int32.random(in: 0..<5, using: &random) }
      #expect(Merging(ids, merges).remaining.map(\.id) == merged(ids, merges))
    }
  }

  @Test func aPromptMayBeOneLongWord() throws {
    let (ids, cut) = try Self.plain.get().encode(String(repeating: "photo", count: 20_000))
    let end = Int32(try Self.record.get().eos)
    #expect(ids.ints.last == end)
    #expect(cut.unicodeScalars.count > 90_000)
  }

  static let damages: [(String, [JSON], JSON?)] = [
    (
      "another pattern", steps(["normalizer", "normalizers", 1, "pattern", "Regex"]),
      .string("(a+)+$")
    ),
    ("an unknown key", steps(["model", "more"]), .null),
    ("a missing key", steps(["decoder"]), nil),
    ("another length", steps(["truncation", "max_length"]), .number(76)),
    ("another start", steps(["post_processor", "cls", 1]), .number(1)),
    (
      "a merge of three", steps(["model", "merges", 0]),
      .list([.string("a"), .string("b"), .string("c")])
    ),
    (
      "a merge of nothing", steps(["model", "merges", 0]),
      .list([.string("a"), .string("\u{416}")])
    ),
    ("an id twice", steps(["model", "vocab", "!"]), .number(1)),
    ("a half id", steps(["model", "vocab", "!"]), .number(0.5)),
    ("a letter less", steps(["model", "vocab", "!"]), nil),
    ("no added tokens", steps(["added_tokens"]), nil),
    ("a damaged added token", steps(["added_tokens", 0, "lstrip"]), .null),
  ]

  @Test(arguments: damages)
  func refusesADamagedFile(_ name: String, _ path: [JSON], _ value: JSON?) throws {
    let damaged = try Self.document.get().with(value, at: path[...])
    let record = try Self.record.get()
    #expect(throws: Broken.self) { try Tokenizer(damaged, record) }
  }
}

/// A path of keys and indices.
func steps(_ steps: [any Sendable]) -> [JSON] {
  steps.map { step in
    (step as? Int).map { .number(Double($0)) } ?? .string(step as? String ?? "")
  }
}
