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
    var placed: [Placed] = []
    for token in ids(raw) {
      for id in expansions[token.id] ?? [token.id] {
        placed.append(Placed(id: id, begin: token.begin))
      }
    }
    let length = record.length
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
    while tokens.count > 1 {
      var best: (at: Int, merge: TokenizerFile.Merge)?
      for at in 0..<tokens.count - 1 {
        let pair = TokenizerFile.Pair(left: tokens[at].id, right: tokens[at + 1].id)
        if let merge = file.merges[pair], merge.rank < best?.merge.rank ?? Int.max {
          best = (at, merge)
        }
      }
      guard let best else { break }
      tokens[best.at] = Placed(id: best.merge.id, begin: tokens[best.at].begin)
      tokens.remove(at: best.at + 1)
    }
    return tokens
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

  private struct Token: Sendable {
    let scalars: [Unicode.Scalar]
    let added: TokenizerFile.Added
  }

  /// By their first code point, the longest first.
  private var tokens: [Unicode.Scalar: [Token]] = [:]

  init(_ added: [TokenizerFile.Added]) {
    var seen: Set<[Unicode.Scalar]> = []
    for token in added {
      let raw = AlignedText(token.content)
      let scalars = token.normalised ? raw.normalised.scalars : raw.scalars
      guard let first = scalars.first, seen.insert(scalars).inserted else { continue }
      tokens[first, default: []].append(Token(scalars: scalars, added: token))
    }
    for first in tokens.keys { tokens[first]?.sort { $0.scalars.count > $1.scalars.count } }
  }

  /// The tokens of a text and the pieces between them, in order.
  func split(_ text: AlignedText) -> [Piece] {
    let scalars = text.scalars
    var pieces: [Piece] = []
    var done = 0
    var at = 0
    while at < scalars.count {
      let rest = scalars[at...]
      guard let token = tokens[scalars[at]]?.first(where: { rest.starts(with: $0.scalars) }) else {
        at += 1
        continue
      }
      var (begin, end) = (at, at + token.scalars.count)
      at = end
      if token.added.singleWord, isTouched(scalars, begin, end) { continue }
      while token.added.leftStrip, begin > done, scalars[begin - 1].properties.isWhitespace {
        begin -= 1
      }
      while token.added.rightStrip, end < scalars.count, scalars[end].properties.isWhitespace {
        end += 1
      }
      if begin > done { pieces.append(.text(text.cut(done..<begin))) }
      pieces.append(.token(token.added.id, begin: text.begins[begin]))
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
