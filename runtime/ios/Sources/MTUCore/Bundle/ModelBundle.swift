import Foundation

/// How much of a bundle is read again when it is opened.
public enum Trust: Sendable {
  /// Every rule and every hash. `manifestSHA256` is the expected hash of the manifest: an app that
  /// downloads bundles ships it, as nothing signs the manifest itself.
  case full(manifestSHA256: String? = nil)
  /// Every rule; of a bundle whose files are unchanged since the receipt was written, no hashes.
  ///
  /// The first opening hashes everything, then writes the hash of the manifest and the size, time
  /// and number of every file to the receipt; later ones compare, and hash everything after any
  /// difference. Bundle and receipt must lie in storage that only the app writes; the receipt
  /// outside the bundle.
  case receipt(URL, manifestSHA256: String? = nil)
}

/// A pair of steps and strength that a task runs.
public struct TableKey: Sendable, Hashable {
  /// Steps of the schedule.
  public let steps: Int
  /// Nil where the loop does not begin from a picture.
  public let strength: Double?
}

/// What a task does and takes.
public struct TaskInfo: Sendable {
  /// Its name, by which a pipeline is opened.
  public let name: String
  /// The branches of its guidance.
  public let guidanceKind: GuidanceKind
  /// The default scales; a request may set others.
  public let guidance: GuidanceScales
  /// The default count of steps.
  public let steps: Int
  /// The default share of the schedule; nil where the loop does not begin from a picture.
  public let strength: Double?
  /// The pairs that the bundle has tables for; none without a loop.
  public let tables: [TableKey]
  /// Whether a request has a prompt; it needs one then.
  public let takesPrompt: Bool
  /// Whether a request may have a negative prompt.
  public let takesNegativePrompt: Bool
  /// For people: the prompt of which the constants were made.
  public let fixedPrompt: String?
  /// Pictures of a request, by name; every one is needed.
  public let pictures: [String: PictureKind]
  /// Shapes of the tensors of a request, by name; every one is needed.
  public let tensors: [String: [Int]]
  /// Numbers that a request may set, by name.
  public let numbers: [String: NumberRange]

  init(_ task: ManifestTask, _ manifest: Manifest) {
    name = task.name
    guidanceKind = task.guidance.kind
    guidance = GuidanceScales(text: task.guidance.text, image: task.guidance.image)
    steps = task.steps
    strength = task.strength
    tables = manifest.tables(task).map { TableKey(steps: $0.steps, strength: $0.strength) }
    takesPrompt = task.takesPrompt
    takesNegativePrompt = task.takesNegativePrompt
    fixedPrompt = task.prompt
    pictures = task.inputs.pictures.mapValues(\.kind)
    tensors = task.inputs.tensors
    numbers = task.inputs.numbers
  }
}

/// A bundle that passed the rules of the contract. It holds no open file.
public struct ModelBundle: Sendable {
  /// Where it lies.
  public let folder: URL
  /// The hash of `manifest.json`, in small hexadecimal letters.
  public let manifestSHA256: String
  let manifest: Manifest
  let files: BundleFiles
  let constants: [Exact: Tensor]
  let goldens: Safetensors?

  /// What the exporter called it.
  public var name: String { manifest.name }
  /// The runtime that it is for.
  public var target: Target { manifest.target }
  /// Rows of every picture.
  public var height: Int { manifest.height }
  /// Columns of every picture.
  public var width: Int { manifest.width }
  /// Versions of what made the bundle.
  public var versions: [String: String] { manifest.versions }
  /// Options of the export that are texts, such as `compute_unit`.
  public var options: [String: String] { manifest.options }

  /// What it does, in the order of the manifest.
  public var tasks: [TaskInfo] {
    manifest.tasks.map { TaskInfo($0, manifest) }
  }

  /// Reads and checks a bundle. It blocks for as long as the files take to be hashed: call it off
  /// the main actor. Where the task is cancelled it ends by `CancellationError`.
  ///
  /// Throws `MTUError.bundleRefused` with the number of the rule, and what the file system says
  /// where the receipt cannot be written.
  public static func open(_ folder: URL, trust: Trust = .full()) throws -> ModelBundle {
    let files = BundleFiles(folder)
    var expected: String?
    var receipt: URL?
    switch trust {
    case .full(let sha256): expected = sha256
    case .receipt(let url, let sha256): (receipt, expected) = (url, sha256)
    }
    if let receipt, Receipt.lies(receipt, inside: folder) {
      throw MTUError.requestRefused("the receipt lies inside the bundle")
    }
    let (manifest, sha256) = try readManifest(files, expected)
    try checkManifest(manifest, files)
    let state = try receipt.map { _ in
      try underRule(6) { try Receipt.text(manifest, files, sha256) }
    }
    let isKnown = receipt.map { Receipt.holds($0, state ?? "") } ?? false
    if !isKnown {
      for record in manifest.records { try underRule(6) { try files.checkHash(record) } }
    }
    try underRule(8) { try manifest.checkGraphs(files) }
    let constants = try underRule(10) { try readConstants(files) }
    for task in manifest.tasks { try underRule(12) { try manifest.checkWiring(task, constants) } }
    let goldens = try underRule(10) { try readGoldens(manifest, files, contents: !isKnown) }
    if let receipt, let state, !isKnown { try Receipt.write(receipt, state) }
    return ModelBundle(
      folder: folder, manifestSHA256: sha256, manifest: manifest, files: files,
      constants: constants, goldens: goldens)
  }

  /// Rules 1 to 3, and the manifest's hash.
  private static func readManifest(
    _ files: BundleFiles, _ expected: String?
  ) throws -> (Manifest, String) {
    let (document, sha256) = try underRule(1) {
      try require(files.has(manifestFile), "\(manifestFile) is missing or no plain file")
      let size = try files.size(manifestFile)
      let isLegal = size <= largestManifest
      try require(isLegal, "\(manifestFile) has more than \(largestManifest) bytes")
      let bytes = try files.file(manifestFile).bytes(at: 0, count: size)
      let sha256 = SHA256Hash.of(bytes)
      if let expected, sha256 != expected.lowercased() {
        throw MTUError.bundleRefused(
          rule: 0, reason: "\(manifestFile): its sha256 is not the expected one")
      }
      let value = try JSON.parse(bytes, manifestFile)
      guard let object = value.object else {
        throw Broken(reason: "\(manifestFile) does not hold an object")
      }
      return (object, sha256)
    }
    try underRule(2) {
      let version = document["schema_version"]?.string
      let isLegal = version.map { Pattern("^2\\.[0-9]{1,6}$")?.matches($0) == true } == true
      let shownVersion = version.map(shown) ?? "that is no text"
      try require(isLegal, "schema_version \(shownVersion): this reader takes 2.x")
    }
    return try underRule(3) {
      try Schema.manifest.get().check(.object(document))
      return (try Manifest(document), sha256)
    }
  }

  /// Rules 4, 5, 7, 8, 9, 11, 13 and the sizes of 6, as far as they need no hash.
  private static func checkManifest(_ manifest: Manifest, _ files: BundleFiles) throws {
    try underRule(4) { for record in manifest.records { try files.checkPath(record.path) } }
    try underRule(5) { try manifest.checkDistinctPaths() }
    try underRule(7) { try manifest.checkOpened(files) }
    try underRule(8) { try manifest.checkNames(files) }
    try underRule(9) { try manifest.checkTables() }
    try underRule(11) { for task in manifest.tasks { try manifest.checkFlow(task) } }
    try underRule(13) { try manifest.checkLimits() }
    try underRule(6) { for record in manifest.records { try files.checkSize(record) } }
  }

  private static func readConstants(_ files: BundleFiles) throws -> [Exact: Tensor] {
    guard files.has(constantsFile) else { return [:] }
    let size = try files.size(constantsFile)
    let isLegal = size <= largestConstants
    try require(isLegal, "\(constantsFile) has more than \(largestConstants) bytes")
    let file = try Safetensors(files.file(constantsFile).path, size: size, constantsFile)
    var constants: [Exact: Tensor] = [:]
    for name in file.entries.keys { constants[name] = try file.tensor(name.text) }
    return constants
  }

  private static func readGoldens(
    _ manifest: Manifest, _ files: BundleFiles, contents: Bool
  ) throws -> Safetensors? {
    guard files.has(goldensFile) else { return nil }
    let size = try files.size(goldensFile)
    let file = try Safetensors(files.file(goldensFile).path, size: size, goldensFile)
    try manifest.checkGoldens(file, contents: contents)
    return file
  }

  /// The task of this name; the only one where none is named.
  func task(_ name: String?) throws -> ManifestTask {
    let tasks = manifest.tasks
    if let name, let task = manifest.task(name) { return task }
    if name == nil, tasks.count == 1 { return tasks[0] }
    let reason = name.map { "the bundle has no task \(shown($0))" } ?? "name a task"
    throw MTUError.requestRefused(reason, legal: tasks.map(\.name))
  }

  /// Names of the parts that a task calls, each once, in the order of the calls.
  public func partNames(task: String) -> [String] {
    var names: [String] = []
    for call in manifest.task(task)?.flow.calls ?? [] where !names.contains(call.part) {
      names.append(call.part)
    }
    return names
  }

  /// Bytes of weights that are in memory together when a task runs: a lower bound of what it needs.
  public func weightBytes(task: String, memory: Memory) -> Int {
    let parts = partNames(task: task).compactMap(manifest.part)
    let bytes = { (part: Part) in part.taskWeightBytes[Exact(task)] ?? part.weightBytes }
    let inLoop = Set(manifest.task(task)?.partsOfLoop ?? [])
    let loop = parts.filter { inLoop.contains($0.name) }
    let others = parts.filter { !inLoop.contains($0.name) }
    let kept = parts.filter { memory == .unet && $0.kind == .denoiser }
    let keptBytes = kept.reduce(0) { $0 + bytes($1) }
    let loopBytes = (loop + kept.filter { !inLoop.contains($0.name) }).reduce(0) { $0 + bytes($1) }
    switch memory {
    case .all: return parts.reduce(0) { $0 + bytes($1) }
    case .least, .unet:
      let alone = others.filter { part in !kept.contains { $0.name == part.name } }.map(bytes)
      return max(loopBytes, keptBytes + (alone.max() ?? 0))
    }
  }
}

extension ManifestTask {
  /// Parts that stay loaded together while the loop runs.
  var partsOfLoop: [String] {
    (flow.calls(.pass) + flow.calls(.guided)).map(\.part)
  }
}

extension Manifest {
  /// The tables that a task may run with.
  func tables(_ task: ManifestTask) -> [Schedule] {
    guard task.flow.hasLoop else { return [] }
    return schedules.filter { ($0.strength != nil) == (task.flow.start != nil) }
  }
}

private let manifestFile = "manifest.json"
private let largestManifest = 4_000_000
private let largestConstants = 256_000_000
