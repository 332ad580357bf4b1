/// The evaluation of a flow for one request: "The flow" of the contract. What runs a part is a
/// function, in any runtime.
struct Evaluation: Sendable {
  typealias Outputs = [String: Tensor]

  /// An id of a once call, for the prompt or for the negative prompt.
  private struct OnceKey: Hashable {
    let call: String
    let text: Bool
  }

  /// Where a source is asked.
  private struct Point {
    var branch = Branch.prompted
    var pass: Pass?
    var latent: Tensor?
    var guided: Tensor?
    /// Of earlier calls of this stage.
    var outputs: [String: Outputs] = [:]
    /// Of the batch.
    var entry = 0
  }

  private let manifest: Manifest
  private let task: ManifestTask
  private let constants: [Exact: Tensor]
  private let request: PreparedRequest
  private let run: @Sendable (Call, [String: Tensor]) async throws -> Outputs
  private let tokenize: @Sendable (String, String) throws -> Tensor
  private let prompted: Set<String>
  private let branches: [Branch]
  private var once: [OnceKey: Outputs] = [:]

  /// Makes the once calls. `run` gives the outputs of a call by name, of the shapes of their specs;
  /// `tokenize` the ids of a text, by the path of a tokenizer.
  init(
    _ manifest: Manifest, _ task: ManifestTask, _ constants: [Exact: Tensor],
    _ request: PreparedRequest,
    run: @escaping @Sendable (Call, [String: Tensor]) async throws -> Outputs,
    tokenize: @escaping @Sendable (String, String) throws -> Tensor
  ) async throws {
    self.manifest = manifest
    self.task = task
    self.constants = constants
    self.request = request
    self.run = run
    self.tokenize = tokenize
    prompted = task.flow.promptedCalls
    branches = request.guidance.branches
    let isNegative = request.negativePrompt != nil && branches.contains { !$0.text }
    for call in task.flow.calls(.once) {
      for text in isNegative && prompted.contains(call.id) ? [true, false] : [true] {
        let point = Point(branch: Branch(text: text, image: true))
        once[OnceKey(call: call.id, text: text)] = try await run(call, feeds(call, [point]))
      }
    }
  }

  /// What the loop begins from beside noise; nil where it is noise alone.
  func start() throws -> Tensor? {
    try task.flow.start.map { try tensor($0, Point(), []) }
  }

  /// The guided m of a pass at `latent`, which is input_scale · x.
  func denoise(_ latent: Tensor, _ pass: Pass) async throws -> Tensor {
    guard let prediction = task.flow.prediction else {
      throw MTUError.requestRefused("task \(task.name) has no loop")
    }
    let batch = try manifest.batch(task)
    var predictions: [Tensor] = []
    for begin in stride(from: 0, to: branches.count, by: batch) {
      let chunk = branches[begin..<min(begin + batch, branches.count)]
      var outputs: [String: Outputs] = [:]
      for call in task.flow.calls(.pass) {
        let points = (0..<batch).map { entry in
          let branch = branches[min(begin + entry, chunk.endIndex - 1)]
          return Point(branch: branch, pass: pass, latent: latent, outputs: outputs, entry: entry)
        }
        outputs[call.id] = try await run(call, feeds(call, points))
      }
      let output = try self.output(prediction, outputs[prediction.call])
      for entry in chunk.indices { predictions.append(output.entry(entry - begin)) }
    }
    let guided = request.guidance.guided(predictions)
    guard let refined = task.flow.refined else { return guided }
    let outputs = try await stage(.guided, Point(pass: pass, latent: latent, guided: guided))
    return try output(refined, outputs[refined.call])
  }

  /// The result [1, 3, H, W], not clipped; `latent` is the last x, nil without a loop.
  func picture(_ latent: Tensor?) async throws -> Tensor {
    let picture = task.flow.picture
    let outputs = try await stage(.end, Point(latent: latent))
    return try output(
      picture, outputs[picture.call] ?? once[OnceKey(call: picture.call, text: true)])
  }

  /// Calls of batch 1.
  private func stage(_ when: When, _ point: Point) async throws -> [String: Outputs] {
    var point = point
    for call in task.flow.calls(when) {
      point.outputs[call.id] = try await run(call, feeds(call, [point]))
    }
    return point.outputs
  }

  private func output(_ name: OutputName, _ outputs: Outputs?) throws -> Tensor {
    guard let output = outputs?[name.name] else {
      throw MTUError.bundleRefused(rule: 0, reason: "\(name.call) gave no \(shown(name.name))")
    }
    return output
  }

  // ----------------------------------------------------------------------------------- values

  /// The inputs of a call: an entry for each point, or one value for all.
  private func feeds(_ call: Call, _ points: [Point]) throws -> [String: Tensor] {
    var feeds: [String: Tensor] = [:]
    for spec in manifest.inputs(call, task) {
      guard let value = call.inputs[Exact(spec.name)] else { continue }
      let entries = spec.shape.first == points.count ? points[...] : points.prefix(1)
      let tensors = try entries.map { try tensor(value, $0, spec) }
      feeds[spec.name] = Tensor.concatenated(tensors, axis: 0)
    }
    return feeds
  }

  private func tensor(_ value: Value, _ point: Point, _ spec: TensorSpec) throws -> Tensor {
    if let empty = value.empty, !point.branch.text, request.negativePrompt == nil {
      return try constant(empty)
    }
    let shape = [1] + spec.shape.dropFirst()
    let tensors = try value.sources.map { try tensor($0, point, shape) }
    return Tensor.concatenated(tensors, axis: value.axis ?? 0)
  }

  /// `shape` is what a number fills.
  private func tensor(_ source: Source, _ point: Point, _ shape: [Int]) throws -> Tensor {
    let raw = try self.raw(source, point, shape)
    switch source.only {
    case .prompt where !point.branch.text, .image where !point.branch.image:
      return Tensor.filled(raw.shape, 0)
    default: break
    }
    if let factor = source.multiply { return raw.scaled(factor) }
    return source.divide.map(raw.divided) ?? raw
  }

  private func raw(_ source: Source, _ point: Point, _ shape: [Int]) throws -> Tensor {
    switch source.origin {
    case .latent: return try given(point.latent, "latent")
    case .guided: return try given(point.guided, "guided sum")
    case .column(let name):
      switch try given(point.pass?.columns[name], "column") {
      case .number(let number): return Tensor.filled(shape, number)
      case .list(let list): return Tensor(shape: [1, list.count], floats: list.map { Float($0) })
      }
    case .number(let name):
      let number = request.numbers[name] ?? task.inputs.numbers[name]?.default
      return Tensor.filled(shape, try given(number, "number"))
    case .constant(let name): return try constant(name)
    case .tokens(let path):
      let text = point.branch.text ? request.prompt : request.negativePrompt
      return try tokenize(path, text ?? "")
    case .picture(let picture): return try pictureTensor(picture)
    case .tensor(let name): return try given(request.tensors[name], "tensor")
    case .output(let output): return try outputTensor(output, point)
    }
  }

  private func given<Item>(_ item: Item?, _ what: String) throws -> Item {
    guard let item else {
      throw MTUError.bundleRefused(rule: 0, reason: "task \(task.name): no \(what) here")
    }
    return item
  }

  private func constant(_ name: String) throws -> Tensor {
    try given(constants[Exact(name)], "constant")
  }

  private func outputTensor(_ output: OutputName, _ point: Point) throws -> Tensor {
    if let local = point.outputs[output.call] {
      let tensor = try self.output(output, local)
      return tensor.shape[0] == 1 ? tensor : tensor.entry(point.entry)
    }
    let isNegative =
      !point.branch.text && request.negativePrompt != nil
      && prompted.contains(output.call)
    return try self.output(output, once[OnceKey(call: output.call, text: !isNegative)])
  }

  private func pictureTensor(_ source: PictureSource) throws -> Tensor {
    var picture = try given(request.pictures[source.name], "picture")
    if let outside = source.outside {
      picture = picture.outside(try given(request.pictures[outside], "mask"))
    }
    if let n = source.every { return picture.cells(n) { $0[0] } }
    guard let n = source.mean else { return picture }
    return picture.cells(n) { cell in
      Float(cell.reduce(0) { $0 + Double($1) } / Double(n * n))
    }
  }
}

extension Tensor {
  /// picture · (mask < 0.5).
  fileprivate func outside(_ mask: Tensor) -> Tensor {
    let mask = mask.floats
    let floats = self.floats.enumerated().map { i, number in
      number * (mask[i % mask.count] < 0.5 ? 1 : 0)
    }
    return Tensor(shape: shape, floats: floats)
  }

  /// A number of each cell of n x n pixels, given row by row.
  fileprivate func cells(_ n: Int, _ number: ([Float]) -> Float) -> Tensor {
    let floats = self.floats
    let width = shape[3]
    var numbers: [Float] = []
    for top in stride(from: 0, to: shape[1] * shape[2], by: n) {
      for left in stride(from: 0, to: width, by: n) {
        let rows = (top..<top + n).map { $0 * width + left }
        numbers.append(number(rows.flatMap { floats[$0..<$0 + n] }))
      }
    }
    return Tensor(shape: [1, shape[1], shape[2] / n, width / n], floats: numbers)
  }
}
