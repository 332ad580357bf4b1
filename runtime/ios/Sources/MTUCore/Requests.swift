/// Raw pixels of a picture, row by row, as a decoder gives them: no colour profile applied.
public struct RawPicture: Sendable, Equatable {
  /// The pixels.
  public enum Pixels: Sendable, Equatable {
    /// Four bytes a pixel: red, green, blue, alpha; alpha is not premultiplied.
    case rgba([UInt8])
    /// One 16-bit number a pixel, without alpha.
    case grey16([UInt16])
  }

  public let width: Int
  public let height: Int
  public let pixels: Pixels
  /// That of EXIF, 1 to 8; the picture is turned by it.
  public let orientation: Int

  public init(width: Int, height: Int, rgba: [UInt8], orientation: Int = 1) {
    self.width = width
    self.height = height
    pixels = .rgba(rgba)
    self.orientation = orientation
  }

  public init(width: Int, height: Int, grey16: [UInt16], orientation: Int = 1) {
    self.width = width
    self.height = height
    pixels = .grey16(grey16)
    self.orientation = orientation
  }
}

/// Pixels of a result, row by row, three bytes each: red, green, blue.
public struct RGBImage: Sendable, Equatable {
  public let width: Int
  public let height: Int
  public let pixels: [UInt8]

  public init(width: Int, height: Int, pixels: [UInt8]) {
    precondition(pixels.count == 3 * width * height, "\(pixels.count) bytes")
    self.width = width
    self.height = height
    self.pixels = pixels
  }
}

/// The noise of a picture: standard normal numbers [1 + P, C, h, w].
public enum Noise: Sendable, Equatable {
  /// What `mtu-export run --seed` draws (appendix of the contract).
  case seed(UInt64)
  /// Numbers of the caller's: those of n_0 alone where no pass draws, or of n_0 to n_P.
  case values([Float])
}

/// What takes the place of a task's guidance scales; nil keeps the task's.
public struct GuidanceScales: Sendable, Equatable {
  public var text: Double?
  public var image: Double?

  public init(text: Double? = nil, image: Double? = nil) {
    self.text = text
    self.image = image
  }
}

/// What the user asks for. What is missing is the task's default.
public struct Request: Sendable {
  public var prompt: String?
  public var negativePrompt: String?
  /// Pictures and masks by their names in the task's `inputs`; the usual ones are `image`, `mask`.
  public var pictures: [String: RawPicture]
  /// Tensors by name: of the task's `tensors`, or fitted pictures [1, channels, H, W].
  public var tensors: [String: Tensor]
  public var numbers: [String: Double]
  public var steps: Int?
  public var strength: Double?
  public var guidance: GuidanceScales
  public var noise: Noise

  public init(
    prompt: String? = nil, negativePrompt: String? = nil, pictures: [String: RawPicture] = [:],
    tensors: [String: Tensor] = [:], numbers: [String: Double] = [:], steps: Int? = nil,
    strength: Double? = nil, guidance: GuidanceScales = GuidanceScales(), noise: Noise = .seed(0)
  ) {
    self.prompt = prompt
    self.negativePrompt = negativePrompt
    self.pictures = pictures
    self.tensors = tensors
    self.numbers = numbers
    self.steps = steps
    self.strength = strength
    self.guidance = guidance
    self.noise = noise
  }
}

/// What happens while a picture is made; `finished` is the last.
public enum Event: Sendable {
  /// A part is being loaded.
  case loading(part: String)
  /// Pass `number` (from 1) of `of` has ended, `elapsed` since the request began. `latent` is x
  /// after it, [1, C, h, w], where `Pipeline.Options.latents` asks for it.
  case pass(number: Int, of: Int, elapsed: Duration, latent: Tensor?)
  /// The picture.
  case finished(Finished)
}

/// A picture and how it came about.
public struct Finished: Sendable {
  public let picture: RGBImage
  /// [1, 3, H, W] in -1..1, not clipped.
  public let tensor: Tensor
  /// The seed of the noise; nil where values were given, and without a loop.
  public let seed: UInt64?
  public let timings: Timings
}

/// Where the time of a picture went.
public struct Timings: Sendable {
  public let total: Duration
  /// Loading by part.
  public let load: [String: Duration]
  /// Running by part, all calls of it together.
  public let run: [String: Duration]
}

/// What stays loaded between parts and between pictures.
public enum Memory: String, Sendable, CaseIterable {
  /// One part, or those of a pass together; nothing after a picture. The default.
  case least
  /// Parts of the kind `denoiser` stay; of the others one at a time.
  case unet
  /// Every part, once loaded.
  case all
}
