import Foundation

/// The orientation that EXIF data of a picture file say.
public enum EXIF {
  /// 1 to 8 of a JPEG, PNG, WebP or TIFF file; 1 where it says none, or nothing legal.
  ///
  /// `other` is what the system's decoder says of files of other kinds, such as HEIC.
  public static func orientation(of file: Data, other: Int? = nil) -> Int {
    let bytes = Bytes(Array(file))
    let block: Range<Int>?
    if bytes.has([0xff, 0xd8], at: 0) {
      block = jpeg(bytes)
    } else if bytes.has([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a], at: 0) {
      block = png(bytes)
    } else if bytes.has(Array("RIFF".utf8), at: 0), bytes.has(Array("WEBP".utf8), at: 8) {
      block = webp(bytes)
    } else if bytes.isTIFF(at: 0) {
      block = 0..<bytes.count
    } else {
      return legal(other)
    }
    return legal(block.flatMap { tiff(bytes, $0) })
  }

  private static func legal(_ value: Int?) -> Int {
    guard let value, (1...8).contains(value) else { return 1 }
    return value
  }

  /// A file, read without ever leaving it.
  private struct Bytes {
    private let bytes: [UInt8]

    init(_ bytes: [UInt8]) {
      self.bytes = bytes
    }

    var count: Int { bytes.count }

    func has(_ expected: [UInt8], at offset: Int) -> Bool {
      offset >= 0 && offset <= count && bytes[offset...].starts(with: expected)
    }

    func isTIFF(at offset: Int) -> Bool {
      has([0x49, 0x49, 0x2a, 0], at: offset) || has([0x4d, 0x4d, 0, 0x2a], at: offset)
    }

    /// A whole number of so many bytes; nil where the range does not have them.
    func number(_ size: Int, at offset: Int, in range: Range<Int>, littleEndian: Bool) -> Int? {
      guard offset >= range.lowerBound, offset <= range.upperBound - size else { return nil }
      let part = bytes[offset..<offset + size]
      return (littleEndian ? Array(part.reversed()) : Array(part)).reduce(0) { $0 << 8 | Int($1) }
    }

    func big(_ size: Int, at offset: Int) -> Int? {
      number(size, at: offset, in: 0..<count, littleEndian: false)
    }
  }

  /// The TIFF block of the first APP1 segment with EXIF data.
  private static func jpeg(_ bytes: Bytes) -> Range<Int>? {
    var at = 2
    while let marker = bytes.big(2, at: at), marker > 0xff00, let length = bytes.big(2, at: at + 2),
      length >= 2, marker != 0xffda
    {
      let end = at + 2 + length
      guard end <= bytes.count else { return nil }
      if marker == 0xffe1, bytes.has(Array("Exif\0\0".utf8), at: at + 4), end >= at + 10 {
        return at + 10..<end
      }
      at = end
    }
    return nil
  }

  private static func png(_ bytes: Bytes) -> Range<Int>? {
    var at = 8
    while let length = bytes.big(4, at: at), at + 12 + length <= bytes.count {
      if bytes.has(Array("eXIf".utf8), at: at + 4) { return at + 8..<at + 8 + length }
      at += 12 + length
    }
    return nil
  }

  private static func webp(_ bytes: Bytes) -> Range<Int>? {
    var at = 12
    let all = 0..<bytes.count
    while let length = bytes.number(4, at: at + 4, in: all, littleEndian: true),
      at + 8 + length <= bytes.count
    {
      if bytes.has(Array("EXIF".utf8), at: at) {
        let hasHead = length >= 6 && bytes.has(Array("Exif\0\0".utf8), at: at + 8)
        return at + (hasHead ? 14 : 8)..<at + 8 + length
      }
      at += 8 + length + length % 2
    }
    return nil
  }

  /// The orientation in the first directory of a TIFF block.
  private static func tiff(_ bytes: Bytes, _ block: Range<Int>) -> Int? {
    let begin = block.lowerBound
    guard bytes.isTIFF(at: begin) else { return nil }
    let isLittle = bytes.has([0x49], at: begin)
    func number(_ size: Int, _ offset: Int) -> Int? {
      bytes.number(size, at: offset, in: block, littleEndian: isLittle)
    }
    guard let offset = number(4, begin + 4), let count = number(2, begin + offset) else {
      return nil
    }
    for index in 0..<count {
      let entry = begin + offset + 2 + 12 * index
      guard let tag = number(2, entry), let type = number(2, entry + 2) else { return nil }
      if tag == 0x0112 { return type == 3 ? number(2, entry + 8) : number(4, entry + 8) }
    }
    return nil
  }
}
