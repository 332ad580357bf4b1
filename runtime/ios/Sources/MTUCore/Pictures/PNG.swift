import Foundation

/// PNG files of results, for systems without a codec: stored, not compressed.
public enum PNG {
  /// A file of 8-bit RGB.
  public static func encode(_ image: RGBImage) -> Data {
    var file = Data([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])
    let head = bigEndian(image.width) + bigEndian(image.height) + [8, 2, 0, 0, 0]
    append("IHDR", head, to: &file)
    append("IDAT", zlib(lines(image)), to: &file)
    append("IEND", [], to: &file)
    return file
  }

  /// Each line behind its filter, which is none.
  private static func lines(_ image: RGBImage) -> [UInt8] {
    var lines: [UInt8] = []
    let length = 3 * image.width
    lines.reserveCapacity(image.height * (length + 1))
    for y in 0..<image.height {
      lines.append(0)
      lines += image.pixels[y * length..<(y + 1) * length]
    }
    return lines
  }

  /// A zlib stream of stored blocks.
  private static func zlib(_ bytes: [UInt8]) -> [UInt8] {
    var stream: [UInt8] = [0x78, 0x01]
    var at = 0
    repeat {
      let length = min(65535, bytes.count - at)
      let isLast: UInt8 = at + length == bytes.count ? 1 : 0
      let low = UInt8(length & 255)
      let high = UInt8(length >> 8)
      stream += [isLast, low, high, ~low, ~high]
      stream += bytes[at..<at + length]
      at += length
    } while at < bytes.count
    return stream + bigEndian(Int(adler(bytes)))
  }

  private static func append(_ kind: String, _ content: [UInt8], to file: inout Data) {
    let chunk = Array(kind.utf8) + content
    file.append(contentsOf: bigEndian(content.count))
    file.append(contentsOf: chunk)
    file.append(contentsOf: bigEndian(Int(crc(chunk))))
  }

  private static func bigEndian(_ number: Int) -> [UInt8] {
    [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: number >> $0) }
  }

  private static func adler(_ bytes: [UInt8]) -> UInt32 {
    var (a, b): (UInt32, UInt32) = (1, 0)
    for byte in bytes {
      a = (a + UInt32(byte)) % 65521
      b = (b + a) % 65521
    }
    return b << 16 | a
  }

  private static let crcTable: [UInt32] = (UInt32(0)..<256).map { index in
    var value = index
    for _ in 0..<8 {
      let isOdd = value & 1 == 1
      value >>= 1
      if isOdd { value ^= 0xedb8_8320 }
    }
    return value
  }

  private static func crc(_ bytes: [UInt8]) -> UInt32 {
    var value = UInt32.max
    for byte in bytes {
      let index = Int((value ^ UInt32(byte)) & 255)
      value = crcTable[index] ^ (value >> 8)
    }
    return ~value
  }
}
