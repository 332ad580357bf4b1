import Foundation

/// Pixels of 8-bit channels, row by row, and the steps I2 to I5 and I7 of the contract on them.
struct Levels: Sendable, Equatable {
  let width: Int
  let height: Int
  let channels: Int
  var data: [UInt8]

  /// I1, I3 and I4: RGB of 8 bits on white. Throws `MTUError.requestRefused`.
  init(_ picture: RawPicture) throws {
    let (width, height) = (picture.width, picture.height)
    let (count, overflows) = width.multipliedReportingOverflow(by: height)
    let isLegal = width > 0 && height > 0 && !overflows && count <= mostPixels
    try requireRequest(isLegal, "a picture has 1 to \(mostPixels) pixels")
    let numbers: Int
    switch picture.pixels {
    case .rgba(let bytes): numbers = bytes.count / 4 + (bytes.count % 4 == 0 ? 0 : count + 1)
    case .grey16(let levels): numbers = levels.count
    }
    let what = "a picture of \(width) x \(height) does not have as many pixels"
    try requireRequest(numbers == count, what)
    self.width = width
    self.height = height
    channels = 3
    switch picture.pixels {
    case .rgba(let bytes): data = Levels.onWhite(bytes)
    case .grey16(let levels):
      data = levels.flatMap { level in
        let byte = UInt8((Double(level) / 257).rounded(.toNearestOrEven))
        return [byte, byte, byte]
      }
    }
  }

  private init(width: Int, height: Int, channels: Int, data: [UInt8]) {
    self.width = width
    self.height = height
    self.channels = channels
    self.data = data
  }

  /// floor((v·a + 255·(255 − a)) / 255 + 0.5), in whole numbers.
  private static func onWhite(_ rgba: [UInt8]) -> [UInt8] {
    var rgb = [UInt8](repeating: 0, count: rgba.count / 4 * 3)
    var at = 0
    for pixel in stride(from: 0, to: rgba.count, by: 4) {
      let alpha = Int(rgba[pixel + 3])
      for channel in 0..<3 {
        let sum = Int(rgba[pixel + channel]) * alpha + 255 * (255 - alpha)
        rgb[at] = UInt8((2 * sum + 255) / 510)
        at += 1
      }
    }
    return rgb
  }

  /// I2: upright, as the EXIF orientation says.
  func turned(_ orientation: Int) throws -> Levels {
    try requireRequest((1...8).contains(orientation), "an orientation is 1 to 8")
    if orientation == 1 { return self }
    let isSwapped = orientation >= 5
    let fromRight = [2, 3, 7, 8].contains(orientation)
    let fromBelow = [3, 4, 6, 7].contains(orientation)
    let (newWidth, newHeight) = isSwapped ? (height, width) : (width, height)
    var turned = [UInt8]()
    turned.reserveCapacity(data.count)
    for y in 0..<newHeight {
      for x in 0..<newWidth {
        let (across, down) = isSwapped ? (y, x) : (x, y)
        let column = fromRight ? width - 1 - across : across
        let line = fromBelow ? height - 1 - down : down
        let from = channels * (line * width + column)
        turned += data[from..<from + channels]
      }
    }
    return Levels(width: newWidth, height: newHeight, channels: channels, data: turned)
  }

  /// One channel of RGB.
  var grey: Levels {
    let grey = stride(from: 0, to: data.count, by: 3).map { at in
      let sum = 19595 * Int(data[at]) + 38470 * Int(data[at + 1]) + 7471 * Int(data[at + 2])
      return UInt8((sum + 32768) >> 16)
    }
    return Levels(width: width, height: height, channels: 1, data: grey)
  }

  // ---------------------------------------------------------------------------------- the fit

  /// I7's rectangle and pixels, in whole numbers.
  func nearest(height newHeight: Int, width newWidth: Int) -> Levels {
    let isNarrow = width * newHeight <= height * newWidth
    let (p, q) = isNarrow ? (width, newWidth) : (height, newHeight)
    func places(_ side: Int, _ count: Int) -> [Int] {
      (0..<count).map { (side * q - count * p + (2 * $0 + 1) * p) / (2 * q) }
    }
    let columns = places(width, newWidth)
    var chosen = [UInt8]()
    chosen.reserveCapacity(newHeight * newWidth * channels)
    for line in places(height, newHeight) {
      for column in columns {
        let from = channels * (line * width + column)
        chosen += data[from..<from + channels]
      }
    }
    return Levels(width: newWidth, height: newHeight, channels: channels, data: chosen)
  }

  /// I5: Lanczos, one axis after the other.
  func lanczos(height newHeight: Int, width newWidth: Int) -> Levels {
    let scale = min(Double(width) / Double(newWidth), Double(height) / Double(newHeight))
    func weights(_ side: Int, _ count: Int) -> [Weights] {
      let begin = (Double(side) - Double(count) * scale) / 2
      return (0..<count).map { Weights(side, begin + (Double($0) + 0.5) * scale, scale) }
    }
    let across = weights(width, newWidth)
    let down = weights(height, newHeight)
    if height - newHeight > 2 * max(0, width - newWidth) {
      return resampledColumns(down).resampledRows(across)
    }
    return resampledRows(across).resampledColumns(down)
  }

  /// What the pixels of a line weigh in one pixel.
  private struct Weights {
    let first: Int
    let values: [Double]

    init(_ side: Int, _ centre: Double, _ scale: Double) {
      let support = max(1, scale)
      let first = max(0, Int((centre - 3 * support - 0.5).rounded(.down)))
      let last = min(side - 1, Int((centre + 3 * support).rounded(.up)))
      let values = (first...max(first, last)).map {
        Weights.kernel((Double($0) + 0.5 - centre) / support)
      }
      let sum = values.reduce(0, +)
      self.first = first
      self.values = values.map { $0 / sum }
    }

    private static func kernel(_ t: Double) -> Double {
      abs(t) < 3 ? sinc(t) * sinc(t / 3) : 0
    }

    private static func sinc(_ t: Double) -> Double {
      t == 0 ? 1 : sin(.pi * t) / (.pi * t)
    }
  }

  private func resampledRows(_ across: [Weights]) -> Levels {
    var result = [UInt8](repeating: 0, count: across.count * height * channels)
    var at = 0
    data.withUnsafeBufferPointer { data in
      for y in 0..<height {
        for weights in across {
          for channel in 0..<channels {
            var from = channels * (y * width + weights.first) + channel
            var sum = 0.0
            for value in weights.values {
              sum += value * Double(data[from])
              from += channels
            }
            result[at] = Levels.level(sum)
            at += 1
          }
        }
      }
    }
    return Levels(width: across.count, height: height, channels: channels, data: result)
  }

  private func resampledColumns(_ down: [Weights]) -> Levels {
    let length = width * channels
    var result = [UInt8]()
    result.reserveCapacity(length * down.count)
    var sums = [Double](repeating: 0, count: length)
    data.withUnsafeBufferPointer { data in
      for weights in down {
        for i in 0..<length { sums[i] = 0 }
        for (j, value) in weights.values.enumerated() {
          let from = (weights.first + j) * length
          for i in 0..<length { sums[i] += value * Double(data[from + i]) }
        }
        for sum in sums { result.append(Levels.level(sum)) }
      }
    }
    return Levels(width: width, height: down.count, channels: channels, data: result)
  }

  private static func level(_ value: Double) -> UInt8 {
    UInt8(min(255, max(0, (value + 0.5).rounded(.down))))
  }
}

private let mostPixels = 100_000_000
