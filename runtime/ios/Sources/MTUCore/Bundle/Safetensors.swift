/// A safetensors file, checked by its header; tensors are read one at a time.
package struct Safetensors: Sendable {
  package struct Entry: Sendable, Equatable {
    package let type: ElementType
    package let shape: [Int]
    /// Where its data begin in the file.
    let begin: Int
  }

  /// By name.
  package let entries: [Exact: Entry]
  private let path: String
  private let what: String

  /// Throws `Broken`. `what` names the file.
  package init(_ path: String, size: Int, _ what: String) throws {
    self.path = path
    self.what = what
    let file = ByteFile(path, what)
    try require(size >= 8, "\(what) is cut off")
    let number = try file.array(at: 0, count: 1, UInt64.self)[0]
    let length = Int(exactly: UInt64(littleEndian: number)) ?? Int.max
    let isLegal = length <= largestHeader && length <= size - 8
    try require(isLegal, "\(what): a header of \(length) bytes")
    let header = try JSON.parse(try file.bytes(at: 8, count: length), what).object
    try require(header != nil, "\(what): its header is no object")
    var entries: [Exact: Entry] = [:]
    var total = 0
    for (name, value) in header?.entries ?? [] where name != "__metadata__" {
      let place = "\(what): \(shown(name))"
      let entry = try Safetensors.entry(value, size - 8 - length, 8 + length, place)
      entries[Exact(name)] = entry
      total += 4 * Tensor.count(entry.shape)
      // Thousands of tensors of the same bytes would take more memory than the file has.
      try require(total <= size - 8 - length, "\(what): its tensors overlap")
    }
    self.entries = entries
  }

  package subscript(name: String) -> Entry? {
    entries[Exact(name)]
  }

  /// Throws `Broken` for one that is missing, cut off or not finite.
  package func tensor(_ name: String) throws -> Tensor {
    guard let entry = self[name] else { throw Broken(reason: "\(what): \(shown(name)) is missing") }
    let place = "\(what): \(shown(name))"
    let file = ByteFile(path, place)
    let count = Tensor.count(entry.shape)
    if entry.type == .int32 {
      return Tensor(
        shape: entry.shape, ints: try file.array(at: entry.begin, count: count, Int32.self))
    }
    let floats = try file.array(at: entry.begin, count: count, Float.self)
    try require(floats.allSatisfy(\.isFinite), "\(place) is not finite")
    return Tensor(shape: entry.shape, floats: floats)
  }

  private static func entry(
    _ value: JSON, _ size: Int, _ data: Int, _ place: String
  ) throws -> Entry {
    guard let entry = value.object else { throw Broken(reason: "\(place) is no object") }
    let types: [String: ElementType] = ["F32": .float32, "I32": .int32]
    guard let type = entry["dtype"]?.string.flatMap({ types[$0] }) else {
      throw Broken(reason: "\(place) is neither F32 nor I32")
    }
    guard let shape = counts(entry["shape"]), let offsets = counts(entry["data_offsets"]),
      offsets.count == 2
    else { throw Broken(reason: "\(place): shape or offsets") }
    let bytes = shape.reduce(Int?(4)) { product, extent in
      product.flatMap {
        let (result, overflows) = $0.multipliedReportingOverflow(by: extent)
        return overflows ? nil : result
      }
    }
    let (begin, end) = (offsets[0], offsets[1])
    let fits = begin <= end && end <= size && end - begin == bytes
    try require(fits, "\(place) does not fit its shape")
    return Entry(type: type, shape: shape, begin: data + begin)
  }

  private static func counts(_ value: JSON?) -> [Int]? {
    guard let list = value?.list else { return nil }
    let counts = list.compactMap { $0.integer }.filter { $0 >= 0 && $0 < 1 << 53 }
    return counts.count == list.count ? counts : nil
  }
}

private let largestHeader = 4_000_000
