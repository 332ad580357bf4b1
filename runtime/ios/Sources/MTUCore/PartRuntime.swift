import Foundation

/// The runtime that a bundle is for.
public enum Target: String, Sendable, CaseIterable {
  case onnx
  case coreml
  case executorch
}

/// An input or output of a part.
public struct TensorSpec: Sendable, Equatable {
  /// Its name in the manifest.
  public let name: String
  /// Static extents.
  public let shape: [Int]
  /// Type of its elements.
  public let type: ElementType

  /// A spec of its fields.
  public init(name: String, shape: [Int], type: ElementType) {
    self.name = name
    self.shape = shape
    self.type = type
  }
}

/// What runs parts: Core ML, or a fake in tests.
public protocol PartRuntime: Sendable {
  /// The `target` of the bundles that it runs.
  var target: Target { get }

  /// Loads one entry of a part.
  ///
  /// A `CancellationError` and an `MTUError` pass unchanged; any other error becomes
  /// `MTUError.partFailed` of the phase `.open`.
  func open(_ part: LoadedPart) async throws -> any PartSession
}

/// One entry of a part, as a runtime needs it to load it.
public struct LoadedPart: Sendable {
  /// The part's name, for messages alone.
  public let name: String
  /// The artefact: an `.mlpackage`, a folder with `.onnx` files, or a `.pte` file.
  public let url: URL
  /// The sha256 of the artefact, as the manifest has it: the same bytes, the same hash.
  public let sha256: String
  /// The function (Core ML), the file in the folder (ONNX), or the method (ExecuTorch).
  public let entry: String
  /// Whether the part has entries other than this one.
  public let hasSeveralEntries: Bool
  /// Inputs in order.
  public let inputs: [TensorSpec]
  /// Outputs in order; all float32.
  public let outputs: [TensorSpec]
  /// Bytes of the artefact and of the weights beside it.
  public let bytes: Int
  /// `versions` of the manifest: what the part was made with.
  public let versions: [String: String]
  /// `options` of the manifest that are texts, such as `compute_unit` and `deployment_target`.
  public let options: [String: String]

  /// A part of its fields.
  public init(
    name: String, url: URL, sha256: String, entry: String, hasSeveralEntries: Bool = false,
    inputs: [TensorSpec], outputs: [TensorSpec], bytes: Int,
    versions: [String: String] = [:], options: [String: String] = [:]
  ) {
    self.name = name
    self.url = url
    self.sha256 = sha256
    self.entry = entry
    self.hasSeveralEntries = hasSeveralEntries
    self.inputs = inputs
    self.outputs = outputs
    self.bytes = bytes
    self.versions = versions
    self.options = options
  }
}

/// A loaded entry of a part. The pipeline asks it for one thing at a time.
public protocol PartSession: Sendable {
  /// Runs the part: a tensor for each input by name → a tensor for each output by name, of the
  /// shapes of the specs.
  ///
  /// Where the calling task is cancelled it may end early, by a `CancellationError`; it returns
  /// only when nothing of the run goes on. A `CancellationError` and an `MTUError` pass unchanged;
  /// any other error becomes `MTUError.partFailed` of the phase `.run`.
  func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor]

  /// Frees what it holds. Called once, and never while `run` runs.
  func close() async
}
