import Foundation

#if canImport(CryptoKit)
  import CryptoKit
#endif

/// SHA-256 of bytes that come in pieces, in small hexadecimal letters.
struct SHA256Hash {
  #if canImport(CryptoKit)
    private var hash = CryptoKit.SHA256()

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
      hash.update(bufferPointer: bytes)
    }

    func finish() -> String { hex(hash.finalize()) }
  #else
    private var hash = PlainSHA256()

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
      hash.update(bytes)
    }

    func finish() -> String { hex(hash.finish()) }
  #endif

  static func of(_ bytes: [UInt8]) -> String {
    var hash = SHA256Hash()
    bytes.withUnsafeBytes { hash.update($0) }
    return hash.finish()
  }

  /// The hash of a file. Throws `Broken`, and `CancellationError` between two pieces.
  static func of(_ file: ByteFile) throws -> String {
    var hash = SHA256Hash()
    try file.pieces { piece in
      try Task.checkCancellation()
      hash.update(piece)
    }
    return hash.finish()
  }
}

/// Bytes as small hexadecimal letters.
func hex(_ bytes: some Sequence<UInt8>) -> String {
  let digits = Array("0123456789abcdef".utf8)
  return String(
    decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}

/// SHA-256 for systems without CryptoKit.
struct PlainSHA256 {
  private static let primes = (2...311).filter { n in !(2..<n).contains { n % $0 == 0 } }
  private static let constants = primes.map { fraction(cbrt(Double($0))) }

  private var state = PlainSHA256.primes.prefix(8).map {
    PlainSHA256.fraction(Double($0).squareRoot())
  }
  private var rest: [UInt8] = []
  private var length: UInt64 = 0
  private var words = [UInt32](repeating: 0, count: 64)

  mutating func update(_ bytes: UnsafeRawBufferPointer) {
    length += UInt64(bytes.count)
    var at = 0
    if !rest.isEmpty {
      at = min(64 - rest.count, bytes.count)
      rest += bytes[..<at]
      guard rest.count == 64 else { return }
      let block = rest
      block.withUnsafeBytes { compress($0) }
      rest.removeAll(keepingCapacity: true)
    }
    while bytes.count - at >= 64 {
      compress(UnsafeRawBufferPointer(rebasing: bytes[at..<at + 64]))
      at += 64
    }
    rest += bytes[at...]
  }

  func finish() -> [UInt8] {
    var copy = self
    var end = [UInt8](repeating: 0, count: (119 - rest.count % 64) % 64 + 1)
    end[0] = 0x80
    withUnsafeBytes(of: (length * 8).bigEndian) { end += $0 }
    end.withUnsafeBytes { copy.update($0) }
    return copy.state.flatMap { word in withUnsafeBytes(of: word.bigEndian) { Array($0) } }
  }

  /// The first 32 bits of what follows the point.
  private static func fraction(_ value: Double) -> UInt32 {
    UInt32((value - value.rounded(.down)) * 4_294_967_296)
  }

  private mutating func compress(_ block: UnsafeRawBufferPointer) {
    let constants = PlainSHA256.constants
    state.withUnsafeMutableBufferPointer { state in
      words.withUnsafeMutableBufferPointer { w in
        constants.withUnsafeBufferPointer { k in
          PlainSHA256.compress(block, state, w, k)
        }
      }
    }
  }

  private static func compress(
    _ block: UnsafeRawBufferPointer, _ state: UnsafeMutableBufferPointer<UInt32>,
    _ w: UnsafeMutableBufferPointer<UInt32>, _ k: UnsafeBufferPointer<UInt32>
  ) {
    for i in 0..<16 {
      w[i] = UInt32(bigEndian: block.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self))
    }
    for i in 16..<64 {
      let early = w[i - 15]
      let late = w[i - 2]
      let s0 = turned(early, 7) ^ turned(early, 18) ^ (early >> 3)
      let s1 = turned(late, 17) ^ turned(late, 19) ^ (late >> 10)
      w[i] = w[i - 16] &+ s0 &+ w[i - 7] &+ s1
    }
    var (a, b, c, d) = (state[0], state[1], state[2], state[3])
    var (e, f, g, h) = (state[4], state[5], state[6], state[7])
    for i in 0..<64 {
      let s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
      let one = h &+ s1 &+ ((e & f) ^ (~e & g)) &+ k[i] &+ w[i]
      let s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
      let two = s0 &+ ((a & b) ^ (a & c) ^ (b & c))
      (h, g, f, e) = (g, f, e, d &+ one)
      (d, c, b, a) = (c, b, a, one &+ two)
    }
    for (index, word) in [a, b, c, d, e, f, g, h].enumerated() { state[index] &+= word }
  }

  @inline(__always)
  private static func turned(_ word: UInt32, _ count: UInt32) -> UInt32 {
    (word >> count) | (word << (32 - count))
  }
}
