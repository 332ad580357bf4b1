import Foundation
import MTUCore

extension Command {
  /// The pixels of a picture file: PAM, raw RGBA of a given size, or what the system's codecs read.
  func readPicture(_ path: String, size: String?) throws -> RawPicture {
    guard let data = FileManager.default.contents(atPath: path) else {
      throw UsageError(reason: "cannot read \(shown(path))")
    }
    if let size {
      let sides = size.split(separator: "x", omittingEmptySubsequences: false).map { Int($0) }
      guard sides.count == 2, let width = sides[0], let height = sides[1], width > 0, height > 0
      else {
        throw UsageError(reason: "a size is WIDTHxHEIGHT, got \(shown(size))")
      }
      let (count, overflows) = width.multipliedReportingOverflow(by: height)
      guard !overflows, count <= data.count, count * 4 == data.count else {
        throw UsageError(
          reason: "\(shown(path)) has \(data.count) bytes, not 4 for each of \(size)")
      }
      return RawPicture(width: width, height: height, rgba: Array(data))
    }
    if data.starts(with: Array("P7\n".utf8)) { return try PAM.read(data, path) }
    guard let decode else {
      let reason =
        "\(shown(path)) is no PAM file; this system reads no others, but raw RGBA with a size"
      throw UsageError(reason: reason)
    }
    do {
      return try decode(data)
    } catch {
      throw UsageError(reason: "\(shown(path)): \(firstLine(error))")
    }
  }
}

/// Portable arbitrary maps of netpbm, format P7.
enum PAM {
  static func read(_ data: Data, _ path: String) throws -> RawPicture {
    func refused(_ reason: String) -> UsageError {
      UsageError(reason: "\(shown(path)): \(reason)")
    }
    let end = Array("ENDHDR\n".utf8)
    let head = data.prefix(1000)
    guard let range = head.firstRange(of: end) else { throw refused("no header of a PAM file") }
    var fields: [String: String] = [:]
    let text = String(decoding: head[..<range.lowerBound], as: UTF8.self)
    for line in text.split(separator: "\n").dropFirst() where !line.hasPrefix("#") {
      let words = line.split(separator: " ", maxSplits: 1).map(String.init)
      if words.count == 2 { fields[words[0]] = words[1].trimmingCharacters(in: .whitespaces) }
    }
    func number(_ name: String) throws -> Int {
      guard let number = fields[name].flatMap({ Int($0) }), (1...1_000_000).contains(number) else {
        throw refused("no \(name)")
      }
      return number
    }
    let (width, height) = (try number("WIDTH"), try number("HEIGHT"))
    let (depth, most) = (try number("DEPTH"), try number("MAXVAL"))
    let bytes = Array(data[range.upperBound...])
    let isDeep = depth == 1 && most == 65535
    guard (1...4).contains(depth), most == 255 || isDeep else {
      throw refused("DEPTH 1 to 4 and MAXVAL 255 are read, and DEPTH 1 of MAXVAL 65535")
    }
    guard bytes.count == width * height * depth * (isDeep ? 2 : 1) else {
      throw refused("\(bytes.count) bytes of pixels for \(width) x \(height)")
    }
    if isDeep {
      let levels = stride(from: 0, to: bytes.count, by: 2).map {
        UInt16(bytes[$0]) << 8 | UInt16(bytes[$0 + 1])
      }
      return RawPicture(width: width, height: height, grey16: levels)
    }
    let rgba = stride(from: 0, to: bytes.count, by: depth).flatMap { at in
      let pixel = bytes[at..<at + depth]
      let colour = depth < 3 ? [pixel[at], pixel[at], pixel[at]] : Array(pixel.prefix(3))
      return colour + [depth % 2 == 0 ? pixel[at + depth - 1] : 255]
    }
    return RawPicture(width: width, height: height, rgba: rgba)
  }
}

/// A `.npy` file of float32, row-major.
enum NumpyFile {
  static func read(_ path: String) throws -> Tensor {
    func refused(_ reason: String) -> UsageError {
      UsageError(reason: "\(shown(path)): \(reason)")
    }
    guard let data = FileManager.default.contents(atPath: path) else {
      throw refused("cannot be read")
    }
    let bytes = Array(data)
    guard bytes.count >= 12, bytes.starts(with: [0x93] + Array("NUMPY".utf8)) else {
      throw refused("no .npy file")
    }
    let isLong = bytes[6] >= 2
    let size = (isLong ? bytes[8..<12] : bytes[8..<10]).reversed().reduce(0) { $0 << 8 | Int($1) }
    let begin = (isLong ? 12 : 10) + size
    guard begin <= bytes.count else { throw refused("the header is cut off") }
    let header = String(decoding: bytes[(begin - size)..<begin], as: UTF8.self)
    guard header.contains("'descr': '<f4'"), header.contains("'fortran_order': False"),
      let open = header.firstIndex(of: "("), let close = header.firstIndex(of: ")"), open < close
    else { throw refused("it must hold float32 in rows") }
    let words = header[header.index(after: open)..<close].split(separator: ",")
    let shape = words.compactMap { Int($0.trimmingCharacters(in: .whitespaces)) }
    let isLegal = shape.allSatisfy { (1...1 << 31).contains($0) } && shape.count <= 8
    let count = shape.reduce(1.0) { $0 * Double($1) }
    guard isLegal, shape.count == words.count, count * 4 == Double(bytes.count - begin) else {
      throw refused("its numbers are not those of its shape")
    }
    let floats = stride(from: begin, to: bytes.count, by: 4).map { at -> Float in
      var bits: UInt32 = 0
      for byte in bytes[at..<at + 4].reversed() { bits = bits << 8 | UInt32(byte) }
      return Float(bitPattern: bits)
    }
    return Tensor(shape: shape, floats: floats)
  }
}
