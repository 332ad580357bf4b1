import Foundation

/// A file that is read piece by piece.
struct ByteFile {
  let path: String
  private let what: String

  /// `what` names the file in errors.
  init(_ path: String, _ what: String) {
    self.path = path
    self.what = what
  }

  /// So many bytes from `offset` on. Throws `Broken` where the file is shorter.
  func bytes(at offset: Int, count: Int) throws -> [UInt8] {
    try array(at: offset, count: count, UInt8.self)
  }

  /// So many numbers of a plain little-endian type from `offset` on.
  func array<Number: BitwiseCopyable>(
    at offset: Int, count: Int, _: Number.Type
  ) throws -> [Number] {
    let file = try open()
    defer { fclose(file) }
    try require(fseek(file, offset, SEEK_SET) == 0, "\(what) cannot be read")
    let array = [Number](unsafeUninitializedCapacity: count) { buffer, filled in
      filled = count == 0 ? 0 : fread(buffer.baseAddress, MemoryLayout<Number>.stride, count, file)
    }
    try require(array.count == count, "\(what) is cut off")
    return array
  }

  /// All of it, in pieces.
  func pieces(_ take: (UnsafeRawBufferPointer) throws -> Void) throws {
    let file = try open()
    defer { fclose(file) }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16)
    defer { buffer.deallocate() }
    while true {
      let count = fread(buffer.baseAddress, 1, buffer.count, file)
      if count > 0 { try take(UnsafeRawBufferPointer(rebasing: buffer[..<count])) }
      if count < buffer.count {
        try require(ferror(file) == 0, "\(what) cannot be read")
        return
      }
    }
  }

  private func open() throws -> UnsafeMutablePointer<FILE> {
    guard let file = fopen(path, "rb") else {
      throw Broken(reason: "\(what) cannot be opened: \(String(cString: strerror(errno)))")
    }
    return file
  }
}
