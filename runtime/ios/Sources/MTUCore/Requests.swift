/// Raw pixels of a picture, row by row, as a decoder gives them: no colour profile applied.
public struct RawPicture: Sendable, Equatable {
  /// The pixels.
  public enum Pixels: Sendable, Equatable {
    /// Four bytes a pixel: red, green, blue, alpha; alpha is not premultiplied.
    case rgba([UInt8])
    /// One 16-bit number a pixel, without alpha.
    case grey16([UInt16])
  }

  /// Columns.
  public let width: Int
  /// Rows.
  public let height: Int
  /// As many as columns times rows.
  public let pixels: Pixels
  /// That of EXIF, 1 to 8; the picture is turned by it.
  public let orientation: Int

  /// Four bytes a pixel; a request with another count is refused.
  public init(width: Int, height: Int, rgba: [UInt8], orientation: Int = 1) {
    self.width = width
    self.height = height
    pixels = .rgba(rgba)
    self.orientation = orientation
  }

  /// A number a pixel; a request with another count is refused.
  public init(width: Int, height: Int, grey16: [UInt16], orientation: Int = 1) {
    self.width = width
    self.height = height
    pixels = .grey16(grey16)
    self.orientation = orientation
  }
}

/// Pixels of a result, row by row, three bytes each: red, green, blue.
public struct RGBImage: Sendable, Equatable {
  /// Columns.
  public let width: Int
  /// Rows.
  public let height: Int
  /// Three bytes a pixel.
  public let pixels: [UInt8]

  /// `pixels` has three bytes for each.
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
  /// s_T, by which the prompt is weighed.
  public var text: Double?
  /// s_I, by which the image is weighed.
  public var image: Double?

  /// Scales that are not named stay the task's.
  public init(text: Double? = nil, image: Double? = nil) {
    self.text = text
    self.image = image
  }
}

/// What the user asks for. What is missing is the task's default.
public struct Request: Sendable {
  /// What the picture is to show; nil for a task that takes none.
  public var prompt: String?
  /// What it is led away from, in place of the empty prompt.
  public var negativePrompt: String?
  /// Pictures and masks by their names in the task's `inputs`; the usual ones are `image`, `mask`.
  public var pictures: [String: RawPicture]
  /// Tensors by name: of the task's `tensors`, or fitted pictures [1, channels, H, W].
  public var tensors: [String: Tensor]
  /// Numbers by their names in the task's `numbers`.
  public var numbers: [String: Double]
  /// With `strength` one of the task's `tables`.
  public var steps: Int?
  /// The share of the schedule that is run, where the loop begins from a picture.
  public var strength: Double?
  /// In place of the task's scales.
  public var guidance: GuidanceScales
  /// Of the start and, where the scheduler draws, of every pass.
  public var noise: Noise

  /// What is not named is the task's default.
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
  /// The result, 8-bit.
  public let picture: RGBImage
  /// [1, 3, H, W] in -1..1, not clipped.
  public let tensor: Tensor
  /// The seed of the noise; nil where values were given, and without a loop.
  public let seed: UInt64?
  /// Where the time went.
  public let timings: Timings
}

/// Where the time of a picture went.
public struct Timings: Sendable {
  /// From the request to the picture, without the wait for a turn.
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
