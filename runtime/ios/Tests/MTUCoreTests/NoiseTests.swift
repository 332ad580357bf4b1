import Testing

@testable import MTUCore

/// A stream of `noise.json`.
struct NoiseVector: Sendable, CustomTestStringConvertible {
  let value: JSON

  var testDescription: String { "seed \(value["seed"]?.string ?? "")" }

  static let all = ((try? json("noise.json"))?.list ?? []).map { NoiseVector(value: $0) }

  /// The words of the seed, the lowest first.
  var entropy: [UInt32] {
    get throws {
      var words: [UInt32] = [0]
      for digit in try given(value["seed"]?.string) {
        var carry = UInt64(try given(digit.wholeNumberValue))
        for index in words.indices {
          let product = UInt64(words[index]) * 10 + carry
          words[index] = UInt32(truncatingIfNeeded: product)
          carry = product >> 32
        }
        if carry > 0 { words.append(UInt32(carry)) }
      }
      return words
    }
  }
}

@Suite struct NoiseTests {
  @Test func everyStreamIsRead() {
    #expect(NoiseVector.all.count >= 6)
  }

  @Test(arguments: NoiseVector.all)
  func draws(_ vector: NoiseVector) throws {
    let count = try given(vector.value["count"]?.integer)
    var noise = NumpyNoise(entropy: try vector.entropy)
    let draws = (0..<count).map { _ in noise.normal() }
    let first = try given(vector.value["first"]?.list).compactMap(\.number)
    #expect(draws.prefix(first.count).map(Double.init) == first)
    #expect(SHA256Hash.of(littleEndian(draws.map(\.bitPattern))) == vector.value["sha256"]?.string)
  }

  @Test func tables() {
    let tables = NumpyNoise.tables
    let hashes = [tables.k, tables.w.map(\.bitPattern), tables.f.map(\.bitPattern)].map {
      SHA256Hash.of(littleEndian($0))
    }
    #expect(
      hashes == [
        "b00c1701b8ee9b5e5bb285bef552e979942af25328141d131b0ad8183643fd39",
        "7e876b6f831f031c494d3f21c00f1845928d7ba8984b207e08b3fcba766a67fd",
        "3ec75aef4fc5308b6f948d1fd8d0eef691a752eebbaa91914fc111948aea6ad8",
      ])
  }

  @Test func theSeedSeven() {
    let words: [UInt32] = [
      2_083_679_832, 3_939_563_265, 4_185_785_210, 142_198_000, 1_732_601_695, 1_648_004_171,
      1_614_310_572, 3_007_594_413,
    ]
    #expect(NumpyNoise.words([7]) == words && NumpyNoise.words([7, 0, 0]) == words)
    var noise = NumpyNoise(seed: 7)
    #expect((0..<3).map { _ in noise.next32() } == [4_058_335_883, 2_684_764_585, 2_938_530_453])
    #expect(NumpyNoise.draws(seed: 7, count: 1) == [1.5219693])
  }

  private func littleEndian(_ words: [UInt32]) -> [UInt8] {
    words.flatMap { word in withUnsafeBytes(of: word.littleEndian) { Array($0) } }
  }
}
