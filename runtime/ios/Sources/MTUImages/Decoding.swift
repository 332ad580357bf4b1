#if canImport(CoreGraphics) && canImport(ImageIO)
  import Accelerate
  import CoreGraphics
  import Foundation
  import ImageIO
  import MTUCore

  extension RawPicture {
    /// The first frame of a picture file as straight pixels, with its orientation: that of EXIF,
    /// and for HEIC, of which the system gives the pixels as they are stored, the system's.
    ///
    /// The source's own colour space is the destination, so that no profile is applied; grey of 16
    /// bits without alpha keeps its depth. Throws `MTUError.requestRefused` for what is no picture,
    /// has no pixels or more than 100,000,000.
    public static func decode(_ data: Data) throws -> RawPicture {
      guard let source = CGImageSourceCreateWithData(data as CFData, nil),
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
        let width = properties[kCGImagePropertyPixelWidth] as? Int,
        let height = properties[kCGImagePropertyPixelHeight] as? Int
      else { throw MTUError.requestRefused("the data are no picture that this system decodes") }
      let (pixels, overflows) = width.multipliedReportingOverflow(by: height)
      guard width > 0, height > 0, !overflows, pixels <= 100_000_000 else {
        throw MTUError.requestRefused("a picture of \(width) x \(height) pixels")
      }
      guard let image = CGImageSourceCreateImageAtIndex(source, 0, nil) else {
        throw MTUError.requestRefused("the picture is damaged")
      }
      let orientation = EXIF.orientation(
        of: data, other: properties[kCGImagePropertyOrientation] as? Int)
      if image.isDeepGrey {
        return RawPicture(
          width: image.width, height: image.height, grey16: try image.deepGrey(),
          orientation: orientation)
      }
      return RawPicture(
        width: image.width, height: image.height, rgba: try image.straightRGBA(),
        orientation: orientation)
    }
  }

  extension CGImage {
    fileprivate var isDeepGrey: Bool {
      let isOpaque = [.none, .noneSkipFirst, .noneSkipLast].contains(alphaInfo)
      return colorSpace?.model == .monochrome && bitsPerComponent == 16 && isOpaque
    }

    /// Four bytes a pixel; alpha last and not premultiplied.
    fileprivate func straightRGBA() throws -> [UInt8] {
      if let space = colorSpace, space.model == .monochrome {
        // grey and alpha, then the same level three times
        let pairs: [UInt8] = try converted(
          to: space, bits: 8, components: 2,
          CGBitmapInfo(rawValue: CGImageAlphaInfo.last.rawValue))
        var pixels = [UInt8](repeating: 0, count: 2 * pairs.count)
        for index in 0..<pairs.count / 2 {
          let (level, alpha) = (pairs[2 * index], pairs[2 * index + 1])
          pixels.replaceSubrange(4 * index..<4 * index + 4, with: [level, level, level, alpha])
        }
        return pixels
      }
      let own = colorSpace?.baseColorSpace ?? colorSpace
      let space = own?.model == .rgb ? own : nil
      return try converted(
        to: space ?? CGColorSpaceCreateDeviceRGB(), bits: 8, components: 4,
        CGBitmapInfo(rawValue: CGImageAlphaInfo.last.rawValue))
    }

    fileprivate func deepGrey() throws -> [UInt16] {
      let order = CGBitmapInfo.byteOrder16Little.rawValue | CGImageAlphaInfo.none.rawValue
      return try converted(
        to: colorSpace ?? CGColorSpaceCreateDeviceGray(), bits: 16, components: 1,
        CGBitmapInfo(rawValue: order))
    }

    private func converted<Number: BitwiseCopyable>(
      to space: CGColorSpace, bits: Int, components: Int, _ info: CGBitmapInfo
    ) throws -> [Number] {
      guard
        let format = vImage_CGImageFormat(
          bitsPerComponent: bits, bitsPerPixel: bits * components, colorSpace: space,
          bitmapInfo: info),
        let buffer = try? vImage_Buffer(cgImage: self, format: format)
      else { throw MTUError.requestRefused("the picture's pixels cannot be read") }
      defer { buffer.free() }
      let row = width * components
      var numbers: [Number] = []
      numbers.reserveCapacity(row * height)
      for line in 0..<height {
        let begin = buffer.data + line * buffer.rowBytes
        let values = begin.assumingMemoryBound(to: Number.self)
        numbers.append(contentsOf: UnsafeBufferPointer(start: values, count: row))
      }
      return numbers
    }
  }
#endif
