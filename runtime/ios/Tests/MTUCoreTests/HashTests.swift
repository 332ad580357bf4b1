import Testing

@testable import MTUCore

@Suite struct HashTests {
  /// Of FIPS 180 and its examples.
  static let known: [(String, Int, String)] = [
    ("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
      "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
  ]

  @Test(arguments: known)
  func known(_ text: String, _ count: Int, _ expected: String) {
    #expect(SHA256Hash.of(Array(text.utf8)) == expected)
    #expect(plain([Array(text.utf8)]) == expected)
  }

  @Test func piecesDoNotMatter() {
    var random = Random(seed: 2)
    for length in 0..<200 {
      let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
      let cut = Int.random(in: 0...length, using: &random)
      let whole = SHA256Hash.of(bytes)
      #expect(plain([Array(bytes[..<cut]), Array(bytes[cut...])]) == whole)
      #expect(plain(bytes.map { [$0] }) == whole)
    }
  }

  private func plain(_ pieces: [[UInt8]]) -> String {
    var hash = PlainSHA256()
    for piece in pieces { piece.withUnsafeBytes { hash.update($0) } }
    return hex(hash.finish())
  }
}
