import Foundation
import Testing

@testable import MTUCore

/// A case of `fits.json`.
struct FitVector: Sendable, CustomTestStringConvertible {
  let value: JSON

  var testDescription: String { value["name"]?.string ?? "" }

  static let all = ((try? json("fits.json"))?.list ?? []).map { FitVector(value: $0) }

  func integer(_ key: String) throws -> Int { try given(value[key]?.integer, key) }

  var input: PictureInput {
    get throws {
      let picture = try given(value["picture"])
      return PictureInput(
        kind: try given(picture["kind"]?.string.flatMap { PictureKind(rawValue: $0) }),
        filter: picture["filter"]?.string.flatMap { PictureInput.Filter(rawValue: $0) } ?? .lanczos,
        range: picture["range"]?.string.flatMap { PictureInput.Range(rawValue: $0) } ?? .signed)
    }
  }

  var raw: RawPicture {
    get throws {
      let file = try given(value["file"]?.string)
      let content = try bytes(testdata.appendingPathComponent(file))
      let (width, height) = (try integer("file_width"), try integer("file_height"))
      let orientation = try integer("orientation")
      guard file.hasSuffix(".grey16") else {
        return RawPicture(width: width, height: height, rgba: content, orientation: orientation)
      }
      let levels = stride(from: 0, to: content.count, by: 2).map {
        UInt16(content[$0]) | UInt16(content[$0 + 1]) << 8
      }
      return RawPicture(width: width, height: height, grey16: levels, orientation: orientation)
    }
  }
}

@Suite struct PictureTests {
  static let expected = Result { try safetensors("fits.safetensors") }

  @Test func everyCaseIsRead() {
    #expect(FitVector.all.count > 20)
  }

  @Test(arguments: FitVector.all)
  func fits(_ vector: FitVector) throws {
    let expected = try Self.expected.get().tensor(vector.testDescription)
    let input = try vector.input
    let actual = try vector.raw.fitted(
      input, height: try vector.integer("height"), width: try vector.integer("width"))
    #expect(actual.shape == expected.shape)
    let levels: [PictureInput.Range: Float] = [.signed: 127.5, .unit: 255, .levels: 1]
    let level: Float = input.kind == .mask ? 255 : levels[input.range] ?? 0
    let distances = zip(actual.floats, expected.floats).map { abs($0 - $1) * level }
    let bound = Float(try vector.integer("levels")) + 1e-3
    let farthest = distances.max() ?? 0
    #expect(farthest <= bound)
  }

  @Test(arguments: [
    RawPicture(width: 0, height: 1, rgba: []),
    RawPicture(width: -1, height: -4, rgba: [0, 0, 0, 0]),
    RawPicture(width: 1, height: 1, rgba: [0, 0, 0]),
    RawPicture(width: 1, height: 1, rgba: [0, 0, 0, 0, 0]),
    RawPicture(width: Int.max, height: 2, rgba: []),
    RawPicture(width: 20_000, height: 20_000, rgba: []),
    RawPicture(width: 1, height: 1, rgba: [0, 0, 0, 0], orientation: 0),
    RawPicture(width: 1, height: 1, rgba: [0, 0, 0, 0], orientation: 9),
    RawPicture(width: 2, height: 1, grey16: [0]),
  ])
  func refuses(_ picture: RawPicture) {
    #expect(throws: MTUError.self) {
      try picture.fitted(PictureInput(kind: .picture), height: 2, width: 2)
    }
  }

  @Test func anySizeFits() throws {
    var random = Random(seed: 4)
    for _ in 0..<60 {
      let sides = (0..<4).map { _ in Int.random(in: 1...40, using: &random) }
      let picture = RawPicture(
        width: sides[0], height: sides[1],
        rgba: [UInt8](repeating: 255, count: 4 * sides[0] * sides[1]),
        orientation: Int.random(in: 1...8, using: &random))
      for filter in [PictureInput.Filter.lanczos, .nearest] {
        let input = PictureInput(kind: .picture, filter: filter, range: .levels)
        let fitted = try picture.fitted(input, height: sides[2], width: sides[3])
        #expect(fitted.floats.allSatisfy { $0 == 255 })
      }
    }
  }

  @Test func halvesOfLevelsGoToEven() {
    let levels: [Float] = [-2, -1, 1, 2, 0, 1 / 255, 3 / 255]
    let tensor = Tensor(shape: [1, 3, 1, 7], floats: levels + levels + levels)
    let image = RGBImage(tensor)
    let first = stride(from: 0, to: 21, by: 3).map { image.pixels[$0] }
    #expect(first == [0, 0, 255, 255, 128, 128, 129])
  }
}

@Suite struct EXIFTests {
  /// A TIFF block with one entry, the orientation.
  static func block(_ orientation: UInt8, littleEndian: Bool = true) -> [UInt8] {
    let little: [UInt8] = [
      0x49, 0x49, 0x2a, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0,
      0, 0,
    ]
    let big: [UInt8] = [
      0x4d, 0x4d, 0, 0x2a, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0,
      0, 0,
    ]
    return littleEndian ? little : big
  }

  static let exif: [UInt8] = Array("Exif\0\0".utf8)

  static func jpeg(_ block: [UInt8]) -> [UInt8] {
    let length = UInt8(2 + 6 + block.count)
    var file: [UInt8] = [0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xe1, 0, length]
    file += exif
    file += block
    file += [0xff, 0xda, 0, 2] as [UInt8]
    return file
  }

  static func png(_ block: [UInt8]) -> [UInt8] {
    var file: [UInt8] = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 1]
    file += Array("tEXt".utf8)
    file += [9, 0, 0, 0, 0, 0, 0, 0, UInt8(block.count)] as [UInt8]
    file += Array("eXIf".utf8)
    file += block
    file += [0, 0, 0, 0] as [UInt8]
    return file
  }

  static func webp(_ block: [UInt8]) -> [UInt8] {
    var file: [UInt8] = Array("RIFF....WEBPVP8X".utf8)
    file += [1, 0, 0, 0, 7, 0] as [UInt8]
    file += Array("EXIF".utf8)
    file += [UInt8(block.count), 0, 0, 0] as [UInt8]
    file += block
    return file
  }

  @Test(arguments: 1...8 as ClosedRange<UInt8>)
  func orientations(_ orientation: UInt8) {
    for isLittle in [true, false] {
      let block = Self.block(orientation, littleEndian: isLittle)
      let files: [[UInt8]] = [
        block, Self.jpeg(block), Self.png(block), Self.webp(block), Self.webp(Self.exif + block),
      ]
      for file in files {
        #expect(EXIF.orientation(of: Data(file)) == Int(orientation))
      }
    }
  }

  @Test func whatSaysNothingIsUpright() {
    let files: [[UInt8]] = [
      [], [0xff, 0xd8], Self.jpeg(Self.block(0)), Self.png(Self.block(9)), Array("text".utf8),
    ]
    for file in files {
      #expect(EXIF.orientation(of: Data(file)) == 1)
    }
  }

  @Test func ofOtherKindsTheDecoderKnows() {
    let heic: [UInt8] = [0, 0, 0, 24] + Array("ftypheic".utf8)
    for (other, expected) in [(6, 6), (0, 1), (9, 1), (nil, 1)] as [(Int?, Int)] {
      #expect(EXIF.orientation(of: Data(heic), other: other) == expected)
    }
    for file in [Self.jpeg(Self.block(3)), Self.png(Self.block(3)), Self.block(3)] {
      #expect(EXIF.orientation(of: Data(file), other: 6) == 3)
    }
    #expect(EXIF.orientation(of: Data(Self.jpeg([])), other: 6) == 1)
  }

  @Test func theInputIsTurned() throws {
    let file = try Data(contentsOf: testdata.appendingPathComponent("input.png"))
    #expect(EXIF.orientation(of: file) != 1)
  }

  @Test func damagedFilesNeverCrash() {
    var random = Random(seed: 5)
    let block = Self.block(6)
    for file in [block, Self.jpeg(block), Self.png(block), Self.webp(block)] {
      for count in file.indices {
        #expect((1...8).contains(EXIF.orientation(of: Data(file[..<count]))))
      }
      for _ in 0..<500 {
        var mutated = file
        random.mutate(&mutated, Int.random(in: 1...5, using: &random))
        #expect((1...8).contains(EXIF.orientation(of: Data(mutated))))
      }
    }
  }
}

@Suite struct PNGTests {
  /// Chunks of a file, their checksums aside.
  private func chunks(_ file: [UInt8]) -> [(String, [UInt8])] {
    var chunks: [(String, [UInt8])] = []
    var at = 8
    while at + 12 <= file.count {
      let length = file[at..<at + 4].reduce(0) { $0 << 8 | Int($1) }
      let name = String(decoding: file[at + 4..<at + 8], as: UTF8.self)
      chunks.append((name, Array(file[at + 8..<at + 8 + length])))
      at += 12 + length
    }
    return chunks
  }

  @Test(arguments: [(1, 1), (48, 32), (200, 120)])
  func holdsThePixels(_ width: Int, _ height: Int) throws {
    let pixels = (0..<3 * width * height).map { UInt8(truncatingIfNeeded: $0 * 7) }
    let file = Array(PNG.encode(RGBImage(width: width, height: height, pixels: pixels)))
    let chunks = chunks(file)
    #expect(chunks.map(\.0) == ["IHDR", "IDAT", "IEND"])
    let stream = chunks[1].1
    var lines: [UInt8] = []
    var at = 2
    while at + 4 < stream.count {
      let length = Int(stream[at + 1]) | Int(stream[at + 2]) << 8
      lines += stream[at + 5..<at + 5 + length]
      at += 5 + length
    }
    #expect(at + 4 == stream.count)
    let line = 3 * width + 1
    #expect(lines.count == line * height)
    #expect(lines.enumerated().filter { $0.offset % line != 0 }.map(\.element) == pixels)
  }

  /// The last chunk is the same in every PNG file.
  @Test func checksums() {
    let file = PNG.encode(RGBImage(width: 1, height: 1, pixels: [1, 2, 3]))
    #expect(Array(file.suffix(4)) == [0xae, 0x42, 0x60, 0x82])
  }
}
