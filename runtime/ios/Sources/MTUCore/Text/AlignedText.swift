import Foundation

/// Code points that know where they began in the raw text: step 2 of "Text".
struct AlignedText: Sendable {
  var scalars: [Unicode.Scalar]
  /// Where each began, and behind them the end of the raw text.
  var begins: [Int]

  /// Raw text.
  init(_ text: String) {
    scalars = Array(text.unicodeScalars)
    begins = Array(0...scalars.count)
  }

  private init(scalars: [Unicode.Scalar], begins: [Int]) {
    self.scalars = scalars
    self.begins = begins
  }

  func cut(_ range: Range<Int>) -> AlignedText {
    AlignedText(
      scalars: Array(scalars[range]), begins: Array(begins[range.lowerBound...range.upperBound]))
  }

  /// NFC, then each run of white space one space, then each code point lower-cased by itself.
  var normalised: AlignedText {
    let composed = self.composed
    var result = AlignedText(scalars: [], begins: [])
    var wasSpace = false
    for (scalar, begin) in zip(composed.scalars, composed.begins) {
      let isSpace = scalar.properties.isWhitespace
      let lower = isSpace ? (wasSpace ? "" : " ") : scalar.properties.lowercaseMapping
      for letter in lower.unicodeScalars { result.append(letter, begin) }
      wasSpace = isSpace
    }
    result.begins.append(composed.begins[composed.scalars.count])
    return result
  }

  private mutating func append(_ scalar: Unicode.Scalar, _ begin: Int) {
    scalars.append(scalar)
    begins.append(begin)
  }

  /// NFC, a piece at a time: a piece ends where what follows neither joins it nor is a mark.
  private var composed: AlignedText {
    let text = AlignedText.text(scalars)
    if text.precomposedStringWithCanonicalMapping.isExactly(text) { return self }
    var result = AlignedText(scalars: [], begins: [])
    var at = 0
    while at < scalars.count {
      var end = at + 1
      while end < scalars.count, AlignedText.joins(scalars[end]) { end += 1 }
      let piece = AlignedText.text(Array(scalars[at..<end]))
      let letters = Array(piece.precomposedStringWithCanonicalMapping.unicodeScalars)
      for (index, letter) in letters.enumerated() {
        let from = index == 0 ? 0 : max(0, end - at - letters.count + index)
        result.append(letter, begins[at + from])
      }
      at = end
    }
    result.begins.append(begins[scalars.count])
    return result
  }

  private static func joins(_ scalar: Unicode.Scalar) -> Bool {
    scalar.isMark || (0x1160...0x11ff).contains(scalar.value)
  }

  static func text(_ scalars: [Unicode.Scalar]) -> String {
    var text = String.UnicodeScalarView()
    text.append(contentsOf: scalars)
    return String(text)
  }
}

extension Unicode.Scalar {
  /// Unicode's category M.
  var isMark: Bool {
    switch properties.generalCategory {
    case .nonspacingMark, .spacingMark, .enclosingMark: true
    default: false
    }
  }

  /// Unicode's category L.
  var isLetter: Bool {
    switch properties.generalCategory {
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
    default: false
    }
  }

  /// Unicode's category N.
  var isNumber: Bool {
    switch properties.generalCategory {
    case .decimalNumber, .letterNumber, .otherNumber: true
    default: false
    }
  }

  /// Alphabetic, M, Nd, Pc or Join_Control.
  var isWordCharacter: Bool {
    switch properties.generalCategory {
    case .decimalNumber, .connectorPunctuation: true
    default: properties.isAlphabetic || isMark || properties.isJoinControl
    }
  }
}
