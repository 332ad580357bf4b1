/// A text that equals no other than the same code points. `String` takes "é" and "e\u{301}", and
/// "K" and the Kelvin sign, for the same; a manifest does not.
package struct Exact: Hashable, Sendable {
  package let text: String

  package init(_ text: String) {
    self.text = text
  }

  package static func == (one: Exact, other: Exact) -> Bool {
    one.text.utf8.elementsEqual(other.text.utf8)
  }

  package func hash(into hasher: inout Hasher) {
    for byte in text.utf8 { hasher.combine(byte) }
  }
}

extension String {
  /// Whether the other text has the same code points.
  func isExactly(_ other: String) -> Bool {
    utf8.elementsEqual(other.utf8)
  }

  /// Whether it comes first in the order of code points, which is that of UTF-8's bytes.
  func comesBefore(_ other: String) -> Bool {
    utf8.lexicographicallyPrecedes(other.utf8)
  }
}
