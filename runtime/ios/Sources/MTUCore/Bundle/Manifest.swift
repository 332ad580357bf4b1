// The manifest as `manifest.schema.json` says.

/// What a part is, for people and for what to keep in memory.
enum PartKind: String, Sendable {
  case denoiser
  case textEncoder = "text_encoder"
  case imageEncoder = "image_encoder"
  case imageDecoder = "image_decoder"
  case network
}

/// How often a call is made.
enum When: String, Sendable, CaseIterable {
  case once, pass, guided, end
}

/// An output of a call.
struct OutputName: Sendable, Equatable {
  let call: String
  let name: String
}

/// A picture of the request as a source: first `outside` of a mask, then `every` or `mean`.
struct PictureSource: Sendable, Equatable {
  let name: String
  let outside: String?
  let every: Int?
  let mean: Int?
}

/// What a value is made of.
struct Source: Sendable, Equatable {
  enum Origin: Sendable, Equatable {
    case latent
    case column(String)
    case constant(String)
    case tokens(tokenizer: String)
    case picture(PictureSource)
    case tensor(String)
    case number(String)
    case output(OutputName)
    case guided
  }

  /// Branches that have it; the others take zeros.
  enum Only: String, Sendable {
    case prompt, image
  }

  let origin: Origin
  let kind: String
  let multiply: Double?
  let divide: Double?
  let only: Only?

  var isTokens: Bool {
    if case .tokens = origin { true } else { false }
  }
}

/// What an input of a call gets.
struct Value: Sendable {
  let sources: [Source]
  let axis: Int?
  let empty: String?
}

/// A run of a part.
struct Call: Sendable {
  let id: String
  let part: String
  let when: When
  let inputs: [Exact: Value]
}

struct Flow: Sendable {
  let calls: [Call]
  let start: Source?
  let prediction: OutputName?
  let refined: OutputName?
  let picture: OutputName

  var hasLoop: Bool { prediction != nil }

  func calls(_ when: When) -> [Call] {
    calls.filter { $0.when == when }
  }
}

/// How branches with and without prompt and image are weighed against each other.
public enum GuidanceKind: String, Sendable {
  case none
  case text
  case textImage = "text_image"
}

/// Kind of guidance and its scales, s_T and s_I of the contract.
struct Guidance: Sendable, Equatable {
  var kind: GuidanceKind
  var text: Double?
  var image: Double?
}

/// What a picture of a request is.
public enum PictureKind: String, Sendable {
  /// Three channels.
  case picture
  /// One channel of levels.
  case grey
  /// One channel of 0 and 1; 1 is repainted.
  case mask
}

struct PictureInput: Sendable, Equatable {
  enum Filter: String, Sendable {
    case lanczos, nearest
  }

  enum Range: String, Sendable {
    case signed = "-1..1"
    case unit = "0..1"
    case levels = "0..255"
  }

  let kind: PictureKind
  var filter = Filter.lanczos
  var range = Range.signed
}

/// A number of a request.
public struct NumberRange: Sendable, Equatable {
  /// What it is where the request has none.
  public let `default`: Double
  /// The least that is taken.
  public let minimum: Double
  /// The most that is taken.
  public let maximum: Double
}

struct TaskInputs: Sendable {
  let pictures: [String: PictureInput]
  let tensors: [String: [Int]]
  let numbers: [String: NumberRange]
}

/// A task of the manifest.
struct ManifestTask: Sendable {
  let name: String
  let guidance: Guidance
  let steps: Int
  let strength: Double?
  let prompt: String?
  let inputs: TaskInputs
  let flow: Flow
}

struct FileRecord: Sendable, Equatable {
  let path: String
  let bytes: Int
  let sha256: String
}

struct Part: Sendable {
  /// What is run for a task.
  struct Entry: Sendable, Equatable {
    let task: String
    let name: String
  }

  let name: String
  let kind: PartKind
  let file: FileRecord
  let data: [String]
  let entries: [Entry]
  let inputs: [TensorSpec]
  let outputs: [TensorSpec]
  let taskInputs: [Exact: [TensorSpec]]
  let weightBytes: Int
  let taskWeightBytes: [Exact: Int]
  let witnessTasks: [String]

  func entry(_ task: String) -> String? {
    entries.first { $0.task.isExactly(task) }?.name
  }

  func inputs(_ task: String) -> [TensorSpec] {
    taskInputs[Exact(task)] ?? inputs
  }
}

struct Pass: Sendable {
  enum Column: Sendable, Equatable {
    case number(Double)
    case list([Double])
  }

  let columns: [String: Column]
  let inputScale: Double
  let x: [Double]
  let m: [Double]
  let noise: Double
}

struct Schedule: Sendable {
  let steps: Int
  let strength: Double?
  let startNoise: Double
  let startPicture: Double
  let passes: [Pass]

  /// The number of passes that noise is needed for: none where no pass draws.
  var draws: Int {
    passes.contains { $0.noise != 0 } ? passes.count : 0
  }
}

struct ProofEntry: Sendable {
  let part: String
  let task: String
  let stage: String
  let floorDB: Double
}

struct TokenizerRecord: Sendable {
  let path: String
  let bos: Int
  let eos: Int
  let pad: Int
  let length: Int
}

struct Golden: Sendable {
  let prompt: String
  let negativePrompt: String?
  let steps: Int?
  let strength: Double?
}

struct Latent: Sendable {
  let channels: Int
  let factor: Int
}

struct Manifest: Sendable {
  let name: String
  let target: Target
  let versions: [String: String]
  let options: [String: String]
  let height: Int
  let width: Int
  let latent: Latent?
  let tasks: [ManifestTask]
  let parts: [Part]
  let tokenizers: [TokenizerRecord]
  let files: [FileRecord]
  let schedules: [Schedule]
  let golden: Golden?
  let proof: [ProofEntry]

  var records: [FileRecord] {
    parts.map(\.file) + files
  }

  func part(_ name: String) -> Part? {
    parts.first { $0.name == name }
  }

  func task(_ name: String) -> ManifestTask? {
    tasks.first { $0.name == name }
  }
}
