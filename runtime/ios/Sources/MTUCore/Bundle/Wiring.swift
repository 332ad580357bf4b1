// Rule 12: shapes and types of a flow fit, decided from the manifest and the constants.

private let largestBatch = 64

extension Manifest {
  /// [1, C, h, w] of a manifest with a latent.
  func latentShape() throws -> [Int] {
    guard let latent else { throw Broken(reason: "the manifest has no latent") }
    return [1, latent.channels, height / latent.factor, width / latent.factor]
  }

  /// [1, 3 or 1, H, W] of a picture of the request.
  func shape(_ picture: PictureInput) -> [Int] {
    [1, picture.kind == .picture ? 3 : 1, height, width]
  }

  /// Parts that a task calls and the bundle has not.
  func missingParts(_ task: ManifestTask) -> [String] {
    task.flow.calls.map(\.part).filter { part($0) == nil }
  }

  /// The inputs of a call; none where its part is missing.
  func inputs(_ call: Call, _ task: ManifestTask) -> [TensorSpec] {
    part(call.part)?.inputs(task.name) ?? []
  }

  /// The batch of the calls in a pass: their first extent other than 1.
  func batch(_ task: ManifestTask) throws -> Int {
    let specs = task.flow.calls(.pass).flatMap { inputs($0, task) + (part($0.part)?.outputs ?? []) }
    let extents = specs.map { $0.shape.first ?? 0 }
    let batch = max(1, extents.max() ?? 1)
    let areAlike = extents.allSatisfy { $0 == 1 || $0 == batch }
    try require(areAlike, "task \(task.name): several batches")
    return batch
  }

  /// Throws `Broken` that names the call and the input. A task whose parts are not all there does
  /// not run, and is not looked at.
  func checkWiring(_ task: ManifestTask, _ constants: [Exact: Tensor]) throws {
    guard missingParts(task).isEmpty else { return }
    try checkLatent(task)
    for call in task.flow.calls {
      guard let part = part(call.part) else { continue }
      let specs = part.inputs(task.name) + part.outputs
      let haveExtents = specs.allSatisfy { !$0.shape.isEmpty }
      try require(haveExtents, "\(part.name): a tensor without a first extent")
      let areFloats = part.outputs.allSatisfy { $0.type == .float32 }
      try require(areFloats, "\(part.name): its outputs must be float32")
    }
    let batch = try self.batch(task)
    try require(batch <= largestBatch, "task \(task.name): a batch of \(batch)")
    try Wiring(manifest: self, task: task, constants: constants, batch: batch).check()
  }

  private func checkLatent(_ task: ManifestTask) throws {
    guard task.flow.hasLoop else { return }
    guard let latent, !schedules.isEmpty else {
      throw Broken(reason: "task \(task.name): no latent or no table")
    }
    let divides = height % latent.factor == 0 && width % latent.factor == 0
    try require(divides, "latent.factor does not divide the picture")
  }
}

private struct Wiring {
  let manifest: Manifest
  let task: ManifestTask
  let constants: [Exact: Tensor]
  let batch: Int
  /// Of each column, how many passes have it, and its lengths there; nil of a number.
  private let columns: [String: (count: Int, lengths: Set<Int?>)]
  private let passes: Int

  init(manifest: Manifest, task: ManifestTask, constants: [Exact: Tensor], batch: Int) {
    self.manifest = manifest
    self.task = task
    self.constants = constants
    self.batch = batch
    var columns: [String: (count: Int, lengths: Set<Int?>)] = [:]
    let passes = manifest.schedules.flatMap(\.passes)
    for (name, column) in passes.lazy.flatMap(\.columns) {
      var length: Int?
      if case .list(let list) = column { length = list.count }
      columns[name, default: (0, [])].count += 1
      columns[name]?.lengths.insert(length)
    }
    self.columns = columns
    self.passes = passes.count
  }

  private var at: String { "task \(task.name)" }

  func check() throws {
    let prompted = task.flow.promptedCalls
    for call in task.flow.calls {
      for spec in manifest.inputs(call, task) {
        guard let value = call.inputs[Exact(spec.name)] else { continue }
        let place = "\(at): \(call.id): \(shown(spec.name))"
        try checkInput(call, spec, value, varies(value, prompted), place)
      }
    }
    try checkResults()
  }

  private func checkInput(
    _ call: Call, _ spec: TensorSpec, _ value: Value, _ varies: Bool, _ at: String
  ) throws {
    let tokens = value.sources.filter(\.isTokens)
    let areAlike = tokens.isEmpty || tokens.count == value.sources.count
    let arePlain = tokens.allSatisfy { $0.multiply == nil && $0.divide == nil }
    try require(
      areAlike && arePlain, "\(at): tokens are neither joined with other kinds nor scaled")
    let type: ElementType = tokens.isEmpty ? .float32 : .int32
    try require(spec.type == type, "\(at) must be \(type.rawValue)")
    let own = spec.shape[0]
    try require(own == 1 || call.when == .pass, "\(at): a batch of \(own)")
    let isShared = call.when == .pass && own == 1 && batch > 1
    try require(!isShared || !varies, "\(at) differs by branch and has batch 1")
    let expected = [1] + spec.shape.dropFirst()
    let shape = try valueShape(value, expected, at)
    try require(shape == expected, "\(at) must be \(expected), it gets \(shape)")
    if let empty = value.empty {
      try require(try constant(empty) == expected, "\(at): the shape of empty")
    }
  }

  private func varies(_ value: Value, _ prompted: Set<String>) -> Bool {
    value.empty != nil
      || value.sources.contains { source in
        if source.only != nil { return true }
        guard case .output(let output) = source.origin else { return false }
        return prompted.contains(output.call) || task.flow.call(output.call)?.when == .pass
      }
  }

  private func valueShape(_ value: Value, _ expected: [Int], _ at: String) throws -> [Int] {
    let shapes = try value.sources.map { try sourceShape($0, expected, at) }
    try require(shapes.allSatisfy { $0.first == 1 }, "\(at): a source's first extent is not 1")
    guard shapes.count > 1 else { return shapes[0] }
    let fills = try value.sources.contains(where: self.fills)
    try require(!fills, "\(at): what fills the input is not alone")
    let axis = value.axis ?? 0
    let place = "\(at): its sources cannot be joined along axis \(axis)"
    try require(shapes.allSatisfy { axis < $0.count }, place)
    let total = shapes.reduce(0) { $0 + $1[axis] }
    let joined = shapes.map { shape in
      shape.enumerated().map { $0.offset == axis ? total : $0.element }
    }
    try require(joined.allSatisfy { $0 == joined[0] }, place)
    return joined[0]
  }

  private func fills(_ source: Source) throws -> Bool {
    switch source.origin {
    case .number: true
    case .column(let name): try columnLength(name) == nil
    default: false
    }
  }

  private func sourceShape(_ source: Source, _ expected: [Int], _ at: String) throws -> [Int] {
    switch source.origin {
    case .latent, .guided: return try manifest.latentShape()
    case .column(let name): return try columnLength(name).map { [1, $0] } ?? expected
    case .number: return expected
    case .constant(let name): return try constant(name)
    case .tokens(let path):
      let length = manifest.tokenizers.first { $0.path.isExactly(path) }?.length ?? 0
      try require((3...1024).contains(length), "\(at): a prompt has 3 to 1024 tokens")
      return [1, length]
    case .picture(let picture): return try pictureShape(picture, at)
    case .tensor(let name): return task.inputs.tensors[name] ?? []
    case .output(let output): return try outputShape(output, at)
    }
  }

  /// The length of a column of the tables; nil of a number.
  private func columnLength(_ name: String) throws -> Int? {
    guard let column = columns[name], column.count == passes else {
      throw Broken(reason: "loop: a pass has no column \(shown(name))")
    }
    let areAlike = column.lengths.count == 1
    try require(areAlike, "loop: column \(shown(name)) is not alike in every pass")
    return column.lengths.first ?? nil
  }

  private func pictureShape(_ source: PictureSource, _ at: String) throws -> [Int] {
    guard let picture = task.inputs.pictures[source.name] else {
      throw Broken(reason: "\(at): no such picture")
    }
    var shape = manifest.shape(picture)
    let step = source.every ?? source.mean ?? 1
    let divides = shape[2] % step == 0 && shape[3] % step == 0
    try require(divides, "\(at): \(step) does not divide the picture")
    shape[2] /= step
    shape[3] /= step
    return shape
  }

  private func outputShape(_ output: OutputName, _ at: String) throws -> [Int] {
    guard let spec = try manifest.outputSpec(task, output) else {
      throw Broken(reason: "\(at): no such output")
    }
    let isInPass = task.flow.call(output.call)?.when == .pass
    let isLegal = spec.shape[0] == 1 || (isInPass && spec.shape[0] == batch)
    try require(isLegal, "\(at): \(shown(output.name)) has another batch")
    return [1] + spec.shape.dropFirst()
  }

  private func checkResults() throws {
    let flow = task.flow
    let latent = flow.hasLoop ? try manifest.latentShape() : []
    let results: [(String, OutputName?, [Int])] = [
      ("prediction", flow.prediction, latent), ("refined", flow.refined, latent),
      ("picture", flow.picture, [1, 3, manifest.height, manifest.width]),
    ]
    for (key, output, expected) in results {
      guard let output else { continue }
      let shape = try outputShape(output, "\(at): \(key)")
      try require(shape == expected, "\(at): \(key) must be \(expected), it is \(shape)")
    }
    if let prediction = flow.prediction {
      let own = try manifest.outputSpec(task, prediction)?.shape[0] ?? 0
      try require(own == batch, "\(at): prediction has batch \(own), its pass \(batch)")
    }
    if let start = flow.start {
      let shape = try sourceShape(start, latent, "\(at): start")
      try require(shape == latent, "\(at): start is \(shape), not the latent's shape")
    }
  }

  private func constant(_ name: String) throws -> [Int] {
    guard let tensor = constants[Exact(name)] else {
      throw Broken(reason: "\(constantsFile): \(shown(name)) is missing")
    }
    let isFloat = tensor.elementType == .float32
    try require(isFloat, "\(constantsFile): \(shown(name)) is not float32")
    return tensor.shape
  }
}
