/// Numbers that a seed decides: splitmix64.
struct Random: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) {
    state = seed
  }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }

  /// Replaces, removes or adds so many bytes.
  mutating func mutate(_ bytes: inout [UInt8], _ count: Int) {
    for _ in 0..<count where !bytes.isEmpty {
      let at = Int.random(in: 0..<bytes.count, using: &self)
      switch Int.random(in: 0..<4, using: &self) {
      case 0: bytes[at] = UInt8.random(in: 0...255, using: &self)
      case 1: bytes[at] ^= 1 << UInt8.random(in: 0...7, using: &self)
      case 2: bytes.remove(at: at)
      default: bytes.insert(UInt8.random(in: 0...255, using: &self), at: at)
      }
    }
  }
}
