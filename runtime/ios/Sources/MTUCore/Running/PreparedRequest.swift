import Foundation

/// A request, checked: its pictures fitted, its table and its noise found.
struct PreparedRequest: Sendable {
  let prompt: String?
  let negativePrompt: String?
  let pictures: [String: Tensor]
  let tensors: [String: Tensor]
  let numbers: [String: Double]
  let guidance: Guidance
  /// Nil without a loop, as is the noise.
  let table: Schedule?
  let noise: Tensor?
}

/// A picture of a request, as it comes or fitted.
enum PictureValue: Sendable {
  case raw(RawPicture)
  case fitted(Tensor)
}

extension Manifest {
  /// Throws `MTUError.requestRefused`.
  func prepare(_ task: ManifestTask, _ request: Request) throws -> PreparedRequest {
    var pictures = request.pictures.mapValues(PictureValue.raw)
    var tensors = request.tensors
    for (name, tensor) in request.tensors
    where task.inputs.pictures[name] != nil && task.inputs.tensors[name] == nil {
      let isOnce = pictures.updateValue(.fitted(tensor), forKey: name) == nil
      try requireRequest(isOnce, "picture \(shown(name)) is given raw and fitted")
      tensors[name] = nil
    }
    return try prepare(task, request, pictures, tensors)
  }

  /// The same with pictures and tensors of their own, in place of the request's.
  func prepare(
    _ task: ManifestTask, _ request: Request, _ pictures: [String: PictureValue],
    _ tensors: [String: Tensor]
  ) throws -> PreparedRequest {
    let inputs = task.inputs
    try requireNames(pictures.keys, inputs.pictures.keys, "picture", all: true)
    try requireNames(tensors.keys, inputs.tensors.keys, "tensor", all: true)
    try requireNames(request.numbers.keys, inputs.numbers.keys, "number", all: false)
    for (name, number) in request.numbers {
      guard let legal = inputs.numbers[name] else { continue }
      let isInside = number >= legal.minimum && number <= legal.maximum
      try requireRequest(isInside, "\(name) must be \(legal.minimum) to \(legal.maximum)")
    }
    for (name, tensor) in tensors { try requireTensor(tensor, inputs.tensors[name] ?? [], name) }
    try checkTexts(task, request)
    let guidance = try scales(task, request)
    let table = task.flow.hasLoop ? try self.table(task, request) : nil
    var fitted: [String: Tensor] = [:]
    for (name, picture) in pictures {
      guard let input = inputs.pictures[name] else { continue }
      switch picture {
      case .raw(let picture): fitted[name] = try picture.fitted(input, height: height, width: width)
      case .fitted(let tensor):
        try requireTensor(tensor, shape(input), name)
        fitted[name] = tensor
      }
    }
    return PreparedRequest(
      prompt: request.prompt, negativePrompt: request.negativePrompt, pictures: fitted,
      tensors: tensors, numbers: request.numbers, guidance: guidance, table: table,
      noise: try table.map { try noise($0, request.noise) })
  }

  private func checkTexts(_ task: ManifestTask, _ request: Request) throws {
    let takes = task.takesPrompt
    let isPromptLegal = takes == (request.prompt != nil)
    try requireRequest(isPromptLegal, "task \(task.name) \(takes ? "needs a" : "takes no") prompt")
    let isNegativeLegal = task.takesNegativePrompt || request.negativePrompt == nil
    try requireRequest(isNegativeLegal, "task \(task.name) takes no negative prompt")
  }

  private func scales(_ task: ManifestTask, _ request: Request) throws -> Guidance {
    var guidance = task.guidance
    func chosen(_ key: String, _ own: Double?, _ scale: Double?) throws -> Double? {
      guard let scale else { return own }
      try requireRequest(own != nil, "task \(task.name) has no guidance by \(key)")
      try requireRequest(abs(scale) <= 10_000, "guidance by \(key) must be -10000 to 10000")
      return scale
    }
    guidance.text = try chosen("text", guidance.text, request.guidance.text)
    guidance.image = try chosen("image", guidance.image, request.guidance.image)
    return guidance
  }

  private func table(_ task: ManifestTask, _ request: Request) throws -> Schedule {
    let tables = tables(task)
    let steps = request.steps ?? task.steps
    let strength = request.strength ?? (task.flow.start == nil ? nil : task.strength)
    if let table = tables.first(where: { $0.steps == steps && $0.strength == strength }) {
      return table
    }
    let wanted = strength.map { "\(steps) steps at strength \($0)" } ?? "\(steps) steps"
    let legal = tables.map { table in
      table.strength.map { "\(table.steps) at \($0)" } ?? "\(table.steps)"
    }
    throw MTUError.requestRefused("no table for \(wanted)", legal: legal)
  }

  private func noise(_ table: Schedule, _ noise: Noise) throws -> Tensor {
    let shape: [Int]
    do { shape = try latentShape() } catch {
      throw MTUError.requestRefused("the bundle has no latent")
    }
    let size = Tensor.count(shape)
    let least = 1 + table.draws
    switch noise {
    case .seed(let seed):
      let isLegal = size <= mostElements / least
      try requireRequest(isLegal, "more than \(mostElements) numbers of noise")
      let floats = NumpyNoise.draws(seed: seed, count: least * size)
      return Tensor(shape: [least] + shape.dropFirst(), floats: floats)
    case .values(let floats):
      let most = 1 + table.passes.count
      let isLegal = [least, most].contains { floats.count == $0 * size }
      let what = "the noise must be \(least * size) finite numbers, \([least] + shape.dropFirst())"
      try requireRequest(isLegal && floats.allSatisfy(\.isFinite), what)
      return Tensor(shape: [floats.count / size] + shape.dropFirst(), floats: floats)
    }
  }
}

/// Numbers that one tensor may have here.
let mostElements = 1 << 31

private func requireNames(
  _ given: some Sequence<String>, _ names: some Collection<String>, _ what: String, all: Bool
) throws {
  let given = Set(given)
  for name in given.sorted() where !names.contains(name) {
    let legal = names.sorted()
    throw MTUError.requestRefused("the task takes no \(what) \(shown(name))", legal: legal)
  }
  for name in all ? names.sorted() : [] {
    try requireRequest(given.contains(name), "the task needs a \(what) \(shown(name))")
  }
}

private func requireTensor(_ tensor: Tensor, _ shape: [Int], _ name: String) throws {
  let isLegal = tensor.elementType == .float32 && tensor.shape == shape && tensor.isFinite
  try requireRequest(isLegal, "\(name) must be finite float32 \(shape)")
}
