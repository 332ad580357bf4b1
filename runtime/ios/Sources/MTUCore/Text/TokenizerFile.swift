/// A bundle's `tokenizer.json`, checked: canonical, and what the manifest says of it.
struct TokenizerFile {
  /// A token that is found as a whole.
  struct Added: Sendable {
    let id: Int32
    let content: String
    let singleWord: Bool
    let leftStrip: Bool
    let rightStrip: Bool
    let normalised: Bool
  }

  /// Two neighbours that become one, by their ids.
  struct Pair: Sendable, Hashable {
    let left: Int32
    let right: Int32
  }

  struct Merge: Sendable {
    let rank: Int
    let id: Int32
  }

  let added: [Added]
  /// Of the byte letters alone, each as it is and with the end of a word.
  let letterIDs: [Int32]
  let lastLetterIDs: [Int32]
  let merges: [Pair: Merge]

  /// Throws `Broken`.
  init(_ document: JSON, _ record: TokenizerRecord) throws {
    let what = "\(record.path)/tokenizer.json"
    try canonical.get().check(document, what)
    let length = Double(record.length)
    let truncation = document.object?["truncation"]?.object?["max_length"]
    let strategy = document.object?["padding"]?.object?["strategy"]?.object
    let isLengthSame =
      truncation == .number(length) && strategy?.count == 1
      && strategy?["Fixed"] == .number(length)
    try require(isLengthSame, "\(what): its length is not \(record.length)")
    let model = document.object?["model"]?.object
    guard let vocabulary = model?["vocab"]?.object, let merges = model?["merges"]?.list,
      let added = document.object?["added_tokens"]?.list
    else { throw Broken(reason: "\(what): no vocabulary") }
    let count = max(vocabulary.count + added.count, merges.count)
    try require(count <= mostTokens, "\(what): more than \(mostTokens) tokens")
    self.added = try added.map { try TokenizerFile.added($0, what) }
    let ids = try TokenizerFile.ids(vocabulary, self.added, what)
    try TokenizerFile.checkSpecial(document, record, ids, what)
    func ofVocabulary(_ token: String, _ message: String) throws -> Int32 {
      guard vocabulary[token] != nil, let id = ids[Exact(token)] else {
        throw Broken(reason: "\(what): \(message)")
      }
      return id
    }
    letterIDs = try byteLetters.map { try ofVocabulary($0, "not every text has ids") }
    lastLetterIDs = try byteLetters.map { try ofVocabulary("\($0)</w>", "not every text has ids") }
    var ranks: [Pair: Merge] = [:]
    for (rank, merge) in merges.enumerated() {
      guard let pair = merge.list?.compactMap(\.string), pair.count == 2, merge.list?.count == 2
      else {
        throw Broken(reason: "\(what): a merge is not a pair of tokens")
      }
      let tokens = try [pair[0], pair[1], pair[0] + pair[1]].map {
        try ofVocabulary($0, "merges name \(shown($0)), which is no token")
      }
      ranks[Pair(left: tokens[0], right: tokens[1])] = Merge(rank: rank, id: tokens[2])
    }
    self.merges = ranks
  }

  private static func added(_ value: JSON, _ what: String) throws -> Added {
    let token = value.object ?? JSONObject()
    let flags = flagNames.compactMap { token[$0]?.bool }
    guard flags.count == flagNames.count, token.count == flagNames.count + 2,
      let content = token["content"]?.string,
      let id = token["id"]?.integer.flatMap(Int32.init(exactly:))
    else { throw Broken(reason: "\(what): an added token is damaged") }
    return Added(
      id: id, content: content, singleWord: flags[0], leftStrip: flags[1], rightStrip: flags[2],
      normalised: flags[3])
  }

  /// The ids of all tokens; no two have one.
  private static func ids(
    _ vocabulary: JSONObject, _ added: [Added], _ what: String
  ) throws -> [Exact: Int32] {
    var ids: [Exact: Int32] = [:]
    var seen: Set<Int32> = []
    func insert(_ token: String, _ id: Int32?) throws {
      let isToken = !token.isEmpty && token.utf8.count <= 8000
      try require(isToken, "\(what): \(shown(token)) is no token")
      guard let id, id >= 0, seen.insert(id).inserted else {
        throw Broken(reason: "\(what): \(shown(token)) has no id of its own")
      }
      ids[Exact(token)] = id
    }
    for (token, value) in vocabulary.entries {
      try insert(token, value.integer.flatMap(Int32.init(exactly:)))
    }
    for token in added {
      if let id = ids[Exact(token.content)] {
        try require(id == token.id, "\(what): \(shown(token.content)) has two ids")
      } else {
        try insert(token.content, token.id)
      }
    }
    return ids
  }

  private static func checkSpecial(
    _ document: JSON, _ record: TokenizerRecord, _ ids: [Exact: Int32], _ what: String
  ) throws {
    let post = document.object?["post_processor"]?.object
    let padding = document.object?["padding"]?.object
    let pad = JSON.list([padding?["pad_token"] ?? .null, padding?["pad_id"] ?? .null])
    let named = [
      ("bos", post?["cls"], record.bos), ("eos", post?["sep"], record.eos),
      ("pad", pad, record.pad),
    ]
    for (name, pair, expected) in named {
      let list = pair?.list ?? []
      let token = list.first?.string
      let isSame =
        list.count == 2 && list[1].integer == expected
        && token.map { ids[Exact($0)].map(Int.init) == expected } == true
      try require(isSame, "\(what): \(name) is not \(expected)")
    }
  }
}

private let mostTokens = 1_000_000
private let flagNames = ["single_word", "lstrip", "rstrip", "normalized", "special"]

/// A printable letter for every byte.
let byteLetters: [String] = {
  var next: UInt32 = 256
  return (UInt32(0)...255).map { byte in
    let prints = (0x21...0x7e).contains(byte) || (0xa1...0xac).contains(byte) || byte >= 0xae
    let letter = prints ? byte : next
    if !prints { next += 1 }
    return Unicode.Scalar(letter).map { String($0) } ?? ""
  }
}()

/// What of tokenizer.json does not vary: the format of Hugging Face tokenizers.
private struct Canonical: Sendable {
  let document: JSON

  func check(_ value: JSON, _ what: String) throws {
    try Canonical.check(value, document, what)
  }

  private static func check(_ value: JSON, _ canonical: JSON, _ what: String) throws {
    switch canonical {
    case .list(let expected):
      guard let list = value.list, list.count == expected.count else {
        throw Broken(reason: "\(what) is not canonical")
      }
      for (each, canonical) in zip(list, expected) { try check(each, canonical, what) }
    case .object(let expected):
      guard let object = value.object else { throw Broken(reason: "\(what) is not canonical") }
      for (key, canonical) in expected.entries {
        guard let each = object[key] else { throw Broken(reason: "\(what): \(key) is missing") }
        try check(each, canonical, what)
      }
      for key in object.keys where expected[key] == nil {
        try require(varying.contains(key), "\(what): unknown key \(shown(key))")
      }
    default: try require(value == canonical, "\(what) is not canonical")
    }
  }

  private static let varying: Set<String> = [
    "added_tokens", "sep", "cls", "pad_id", "pad_token", "vocab", "merges", "unk_token",
    "max_length", "strategy",
  ]
}

private let canonical = Result {
  Canonical(document: try JSON.parse(Array(canonicalText.utf8), "the canonical tokenizer"))
}

private let canonicalText = #"""
  {
    "version": "1.0",
    "truncation": {"direction": "Right", "strategy": "LongestFirst", "stride": 0},
    "padding": {"direction": "Right", "pad_to_multiple_of": null, "pad_type_id": 0},
    "normalizer": {
      "type": "Sequence",
      "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
        {"type": "Lowercase"}
      ]
    },
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [
        {
          "type": "Split",
          "pattern": {
            "Regex": "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"
          },
          "behavior": "Removed",
          "invert": true
        },
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
      ]
    },
    "post_processor": {
      "type": "RobertaProcessing", "trim_offsets": false, "add_prefix_space": false
    },
    "decoder": {
      "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
    },
    "model": {
      "type": "BPE",
      "dropout": null,
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "</w>",
      "fuse_unk": false,
      "byte_fallback": false,
      "ignore_merges": false
    }
  }
  """#
