import Foundation

/// The draws of numpy's `default_rng(seed).standard_normal(dtype=float32)`, by the appendix of the
/// contract: PCG64, 32 bits at a time, and the ziggurat.
struct NumpyNoise {
  private static let r = 3.654152885361009
  private static let area = 0.004928673233974655
  private static let scale = 8_388_608.0
  private static let inverse = Float(1 / r)

  /// The layers of the ziggurat.
  struct Tables: Sendable {
    fileprivate(set) var k = [UInt32](repeating: 0, count: 256)
    fileprivate(set) var w = [Float](repeating: 0, count: 256)
    fileprivate(set) var f = [Float](repeating: 0, count: 256)
  }

  static let tables = makeTables()

  private var state: UInt128Pair
  private let increment: UInt128Pair
  private var upper: UInt32?

  init(seed: UInt64) {
    self.init(entropy: [UInt32(truncatingIfNeeded: seed), UInt32(seed >> 32)])
  }

  /// `entropy` are the words of a seed, the lowest first.
  init(entropy: [UInt32]) {
    let words = NumpyNoise.words(entropy).map(UInt64.init)
    let w: [UInt64] = (0..<4).map { words[2 * $0] | (words[2 * $0 + 1] << 32) }
    increment = UInt128Pair(high: (w[2] << 1) | (w[3] >> 63), low: (w[3] << 1) | 1)
    state = increment &+ UInt128Pair(high: w[0], low: w[1])
    state = state &* NumpyNoise.multiplier &+ increment
  }

  /// The first `count` draws of a seed.
  static func draws(seed: UInt64, count: Int) -> [Float] {
    var noise = NumpyNoise(seed: seed)
    return (0..<count).map { _ in noise.normal() }
  }

  /// The eight words that the words of a seed become.
  static func words(_ seed: [UInt32]) -> [UInt32] {
    let entropy = Array(seed.reversed().drop { $0 == 0 }.reversed())
    var a: UInt32 = 0x43b0_d7e5
    func hash(_ value: UInt32) -> UInt32 {
      let mixed = value ^ a
      a = a &* 0x931e_8875
      let product = mixed &* a
      return product ^ (product >> 16)
    }
    func mix(_ x: UInt32, _ y: UInt32) -> UInt32 {
      let value = 0xca01_f9dd &* x &- 0x4973_f715 &* y
      return value ^ (value >> 16)
    }
    var pool = (0..<4).map { hash($0 < entropy.count ? entropy[$0] : 0) }
    for s in 0..<4 {
      for t in 0..<4 where s != t { pool[t] = mix(pool[t], hash(pool[s])) }
    }
    for word in entropy.dropFirst(4) {
      for t in 0..<4 { pool[t] = mix(pool[t], hash(word)) }
    }
    var b: UInt32 = 0x8b51_f9dd
    return (0..<8).map { i in
      let mixed = pool[i % 4] ^ b
      b = b &* 0x58f3_8ded
      let product = mixed &* b
      return product ^ (product >> 16)
    }
  }

  mutating func next32() -> UInt32 {
    if let upper {
      self.upper = nil
      return upper
    }
    state = state &* NumpyNoise.multiplier &+ increment
    let folded = state.high ^ state.low
    let turn = state.high >> 58
    let number = folded >> turn | folded << ((64 - turn) & 63)
    upper = UInt32(number >> 32)
    return UInt32(truncatingIfNeeded: number)
  }

  private mutating func uniform() -> Float {
    Float(next32() >> 8) * 0x1p-24
  }

  private mutating func negativeLog() -> Float {
    -Float(log1p(-Double(uniform())))
  }

  /// One standard normal number.
  mutating func normal() -> Float {
    let tables = NumpyNoise.tables
    while true {
      let n = next32()
      let i = Int(n & 255)
      let d = n >> 9
      let size = Float(d) * tables.w[i]
      let x = (n >> 8) & 1 == 1 ? -size : size
      if d < tables.k[i] { return x }
      if i == 0 { return tail(d) }
      let height = (tables.f[i - 1] - tables.f[i]) * uniform() + tables.f[i]
      if Double(height) < exp(-0.5 * Double(x) * Double(x)) { return x }
    }
  }

  private mutating func tail(_ d: UInt32) -> Float {
    while true {
      let a = NumpyNoise.inverse * negativeLog()
      let b = negativeLog()
      if b + b > a * a {
        let size = Float(NumpyNoise.r) + a
        return (d >> 8) & 1 == 1 ? -size : size
      }
    }
  }

  private static func makeTables() -> Tables {
    var tables = Tables()
    var y = [Double](repeating: 0, count: 256)
    var e = y
    y[0] = 1
    y[255] = exp(-0.5 * r * r)
    e[255] = r
    e[0] = area / y[255]
    tables.k[0] = UInt32((r * y[255] / area * scale).rounded())
    for i in stride(from: 254, through: 1, by: -1) {
      e[i] = (-2 * log(area / e[i + 1] + y[i + 1])).squareRoot()
      tables.k[i + 1] = UInt32((e[i] / e[i + 1] * scale).rounded())
      y[i] = exp(-0.5 * e[i] * e[i])
    }
    tables.w = e.map { Float($0 / scale) }
    tables.f = y.map { Float($0) }
    return tables
  }

  private static let multiplier = UInt128Pair(
    high: 0x2360_ed05_1fc6_5da4, low: 0x4385_df64_9fcc_f645)
}

/// A number of 128 bits that wraps around; `UInt128` needs a newer system.
struct UInt128Pair: Sendable {
  var high: UInt64
  var low: UInt64

  static func &+ (one: UInt128Pair, other: UInt128Pair) -> UInt128Pair {
    let (low, carries) = one.low.addingReportingOverflow(other.low)
    return UInt128Pair(high: one.high &+ other.high &+ (carries ? 1 : 0), low: low)
  }

  static func &* (one: UInt128Pair, other: UInt128Pair) -> UInt128Pair {
    let product = one.low.multipliedFullWidth(by: other.low)
    let high = product.high &+ one.low &* other.high &+ one.high &* other.low
    return UInt128Pair(high: high, low: product.low)
  }
}
