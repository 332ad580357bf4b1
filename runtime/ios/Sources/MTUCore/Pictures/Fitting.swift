// Pictures from raw pixels to tensors: I1 to I7 of the contract, and the way back.

extension RawPicture {
  /// The picture at the size of a bundle, float32 [1, 3, H, W], or [1, 1, H, W] of grey and masks.
  /// Throws `MTUError.requestRefused`.
  func fitted(_ input: PictureInput, height: Int, width: Int) throws -> Tensor {
    let upright = try Levels(self).turned(orientation)
    if input.kind == .mask {
      let grey = upright.grey.nearest(height: height, width: width)
      return Tensor(shape: [1, 1, height, width], floats: grey.data.map { $0 >= 128 ? 1 : 0 })
    }
    let isNearest = input.filter == .nearest
    var levels =
      isNearest
      ? upright.nearest(height: height, width: width)
      : upright.lanczos(height: height, width: width)
    if input.kind == .grey { levels = levels.grey }
    let (channels, count) = (levels.channels, height * width)
    var floats = [Float](repeating: 0, count: channels * count)
    for channel in 0..<channels {
      for i in 0..<count {
        let level = Float(levels.data[i * channels + channel])
        floats[channel * count + i] = input.range.number(level)
      }
    }
    return Tensor(shape: [1, channels, height, width], floats: floats)
  }
}

extension PictureInput.Range {
  /// I6: a level of 255 as float32, each operation rounded.
  fileprivate func number(_ level: Float) -> Float {
    switch self {
    case .signed: level / 127.5 - 1
    case .unit: level / 255
    case .levels: level
    }
  }
}

extension RGBImage {
  /// The 8-bit picture of [1, 3, H, W] in -1..1: clipped, round((v + 1)·127.5) in float64, halves
  /// to even.
  public init(_ tensor: Tensor) {
    precondition(tensor.shape.count == 4 && tensor.shape[1] == 3, "\(tensor.shape)")
    let (height, width) = (tensor.shape[2], tensor.shape[3])
    let count = height * width
    let floats = tensor.floats
    var pixels = [UInt8](repeating: 0, count: 3 * count)
    for i in 0..<count {
      for channel in 0..<3 {
        let value = min(1, max(-1, Double(floats[channel * count + i])))
        pixels[3 * i + channel] = UInt8(((value + 1) * 127.5).rounded(.toNearestOrEven))
      }
    }
    self.init(width: width, height: height, pixels: pixels)
  }
}
