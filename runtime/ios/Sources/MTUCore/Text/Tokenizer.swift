/// CLIP's tokenizer from a bundle's `tokenizer.json`: "Text" of the contract.
struct Tokenizer: Sendable {
  /// An id, and where it begins in the raw text.
  private struct Placed {
    let id: Int32
    let begin: Int
  }

  private let record: TokenizerRecord
  private let file: TokenizerFile
  private let rawRound: AddedTokens
  private let normalisedRound: AddedTokens
  private let expansions: [Int32: [Int32]]

  /// Throws `Broken` for a file that is not canonical, or not what the manifest says of it.
  init(_ document: JSON, _ record: TokenizerRecord) throws {
    self.record = record
    file = try TokenizerFile(document, record)
    rawRound = AddedTokens(file.added.filter { !$0.normalised })
    normalisedRound = AddedTokens(file.added.filter(\.normalised))
    expansions = Tokenizer.expansions(file.added)
  }

  /// The ids [1, length], and what of the text is cut off ("" where it fits).
  func encode(_ text: String) -> (ids: Tensor, cut: String) {
    let raw = AlignedText(text)
    let length = record.length
    var placed: [Placed] = []
    for token in ids(raw) where placed.count < length - 1 {  // one more than is kept
      let ids = expansions[token.id] ?? [token.id]
      placed += ids.prefix(length - 1).map { Placed(id: $0, begin: token.begin) }
    }
    var ids = [Int32(record.bos)] + placed.prefix(length - 2).map(\.id) + [Int32(record.eos)]
    ids += [Int32](repeating: Int32(record.pad), count: length - ids.count)
    let cut = placed.count > length - 2 ? raw.scalars[placed[length - 2].begin...] : []
    return (Tensor(shape: [1, length], ints: ids), AlignedText.text(Array(cut)))
  }

  private func ids(_ raw: AlignedText) -> [Placed] {
    rawRound.split(raw).flatMap { outer -> [Placed] in
      switch outer {
      case .token(let id, let begin): [Placed(id: id, begin: begin)]
      case .text(let piece):
        normalisedRound.split(piece.normalised).flatMap { inner -> [Placed] in
          switch inner {
          case .token(let id, let begin): [Placed(id: id, begin: begin)]
          case .text(let piece): words(piece)
          }
        }
      }
    }
  }

  /// Steps 3 to 5 of a piece.
  private func words(_ piece: AlignedText) -> [Placed] {
    WordScanner.words(piece.scalars).flatMap { merged(piece, $0) }
  }

  /// The ids of one word.
  private func merged(_ piece: AlignedText, _ word: Range<Int>) -> [Placed] {
    var tokens: [Placed] = []
    for at in word {
      for byte in String(piece.scalars[at]).utf8 {
        tokens.append(Placed(id: Int32(byte), begin: piece.begins[at]))
      }
    }
    let last = tokens.count - 1
    tokens = tokens.enumerated().map { index, token in
      let ids = index == last ? file.lastLetterIDs : file.letterIDs
      return Placed(id: ids[Int(token.id)], begin: token.begin)
    }
    return Merging(tokens.map(\.id), file.merges).remaining.map { at, id in
      Placed(id: id, begin: tokens[at].begin)
    }
  }

  /// Added tokens that stand for several: T, T_1, T_2, ...
  private static func expansions(_ added: [TokenizerFile.Added]) -> [Int32: [Int32]] {
    var ids: [Exact: Int32] = [:]
    for token in added { ids[Exact(token.content)] = token.id }
    var expansions: [Int32: [Int32]] = [:]
    for (content, id) in ids {
      var all = [id]
      while let next = ids[Exact("\(content.text)_\(all.count)")] { all.append(next) }
      if all.count > 1 { expansions[id] = all }
    }
    return expansions
  }
}

/// Step 3: all matches, from the left, the first alternative that fits, of
/// `<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^ \p{L}\p{N}]+`.
private enum WordScanner {
  private static let specials = ["<|startoftext|>", "<|endoftext|>"].map {
    Array($0.unicodeScalars)
  }
  private static let endings = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map {
    Array($0.unicodeScalars)
  }

  static func words(_ scalars: [Unicode.Scalar]) -> [Range<Int>] {
    var words: [Range<Int>] = []
    var at = 0
    func run(_ fits: (Unicode.Scalar) -> Bool) -> Int {
      var end = at
      while end < scalars.count, fits(scalars[end]) { end += 1 }
      return end
    }
    while at < scalars.count {
      let rest = scalars[at...]
      if let special = specials.first(where: { rest.starts(with: $0) }) {
        let end = at + special.count
        words += [at..<at + 2, at + 2..<end - 2, end - 2..<end]
        at = end
        continue
      }
      let end: Int
      if let ending = endings.first(where: { rest.starts(with: $0) }) {
        end = at + ending.count
      } else if scalars[at].isLetter {
        end = run(\.isLetter)
      } else if scalars[at].isNumber {
        end = at + 1
      } else {
        end = run { $0 != " " && !$0.isLetter && !$0.isNumber }
      }
      if end > at { words.append(at..<end) }
      at = max(end, at + 1)
    }
    return words
  }
}

/// The added tokens of a round: step 1.
private struct AddedTokens: Sendable {
  /// A piece of a text.
  enum Piece {
    case token(Int32, begin: Int)
    case text(AlignedText)
  }

  private var tokens: [[Unicode.Scalar]: TokenizerFile.Added] = [:]
  /// Lengths of the tokens that begin with a code point, the longest first.
  private var lengths: [Unicode.Scalar: [Int]] = [:]

  init(_ added: [TokenizerFile.Added]) {
    var places: [Unicode.Scalar: Set<Int>] = [:]
    for token in added {
      let raw = AlignedText(token.content)
      let scalars = token.normalised ? raw.normalised.scalars : raw.scalars
      guard let first = scalars.first, tokens[scalars] == nil else { continue }
      tokens[scalars] = token
      places[first, default: []].insert(scalars.count)
    }
    lengths = places.mapValues { $0.sorted(by: >) }
  }

  /// The longest token at a place.
  private func token(_ scalars: [Unicode.Scalar], _ at: Int) -> (TokenizerFile.Added, length: Int)?
  {
    for length in lengths[scalars[at]] ?? [] where at + length <= scalars.count {
      if let token = tokens[Array(scalars[at..<at + length])] { return (token, length) }
    }
    return nil
  }

  /// The tokens of a text and the pieces between them, in order.
  func split(_ text: AlignedText) -> [Piece] {
    let scalars = text.scalars
    var pieces: [Piece] = []
    var done = 0
    var at = 0
    while at < scalars.count {
      guard let (token, length) = token(scalars, at) else {
        at += 1
        continue
      }
      var (begin, end) = (at, at + length)
      at = end
      if token.singleWord, isTouched(scalars, begin, end) { continue }
      if token.leftStrip {
        while begin > done, scalars[begin - 1].properties.isWhitespace { begin -= 1 }
      }
      if token.rightStrip {
        while end < scalars.count, scalars[end].properties.isWhitespace { end += 1 }
      }
      if begin > done { pieces.append(.text(text.cut(done..<begin))) }
      pieces.append(.token(token.id, begin: text.begins[begin]))
      done = end
    }
    if done < scalars.count { pieces.append(.text(text.cut(done..<scalars.count))) }
    return pieces
  }

  private func isTouched(_ scalars: [Unicode.Scalar], _ begin: Int, _ end: Int) -> Bool {
    (begin > 0 && scalars[begin - 1].isWordCharacter)
      || (end < scalars.count && scalars[end].isWordCharacter)
  }
}
