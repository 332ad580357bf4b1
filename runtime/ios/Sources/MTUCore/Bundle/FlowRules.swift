// Rule 11: the flow of a task is in order and complete.

extension Source.Origin {
  /// Stages whose calls may have it.
  fileprivate var stages: [When] {
    switch self {
    case .latent: [.pass, .guided, .end]
    case .column: [.pass, .guided]
    case .tokens: [.once]
    case .guided: [.guided]
    case .constant, .picture, .tensor, .number, .output: When.allCases
    }
  }
}

extension Flow {
  func call(_ id: String) -> Call? {
    calls.first { $0.id == id }
  }

  /// Ids of the once calls whose outputs depend on the prompt.
  var promptedCalls: Set<String> {
    var prompted: Set<String> = []
    for call in calls(.once) {
      let depends = call.inputs.values.flatMap(\.sources).contains { source in
        switch source.origin {
        case .tokens: true
        case .output(let output): prompted.contains(output.call)
        default: false
        }
      }
      if depends { prompted.insert(call.id) }
    }
    return prompted
  }
}

extension ManifestTask {
  var takesPrompt: Bool { !flow.promptedCalls.isEmpty }

  var takesNegativePrompt: Bool { takesPrompt && guidance.kind != .none }
}

extension Manifest {
  /// The output of a call, by its part; nil where the part was not exported.
  func outputSpec(_ task: ManifestTask, _ output: OutputName) throws -> TensorSpec? {
    guard let call = task.flow.call(output.call) else {
      throw Broken(reason: "\(task.name): no call \(shown(output.call))")
    }
    guard let part = part(call.part) else { return nil }
    let spec = part.outputs.first { $0.name.isExactly(output.name) }
    try require(spec != nil, "\(call.part) has no output \(shown(output.name))")
    return spec
  }

  func checkFlow(_ task: ManifestTask) throws {
    var before: [Call] = []
    var stage = 0
    for call in task.flow.calls {
      let at = "task \(task.name): call \(call.id)"
      let own = When.allCases.firstIndex(of: call.when) ?? 0
      try require(own >= stage, "\(at) is out of order")
      stage = own
      let part = part(call.part)
      if let part { try checkInputNames(call, part, at) }
      for (name, value) in call.inputs.sorted(by: { $0.key.text.comesBefore($1.key.text) }) {
        let place = "\(at): input \(shown(name.text))"
        let isAxisLegal = (value.sources.count > 1) == (value.axis != nil)
        try require(isAxisLegal, "\(place): axis belongs to several sources")
        let isEmptyLegal = value.empty == nil || call.when == .pass
        try require(isEmptyLegal, "\(place): empty is for calls in a pass")
        for source in value.sources {
          try checkSource(task, source, call.when, before, place)
          if part != nil { try checkTokenizer(source, place) }
        }
      }
      before.append(call)
    }
    for (name, number) in task.inputs.numbers {
      let isInside = number.minimum <= number.default && number.default <= number.maximum
      try require(isInside, "task \(task.name): number \(name): default is not minimum to maximum")
    }
    try checkResults(task)
  }

  private func checkInputNames(_ call: Call, _ part: Part, _ at: String) throws {
    let names = part.inputs.map { Exact($0.name) }
    for name in names {
      try require(call.inputs[name] != nil, "\(at): \(shown(name.text)) has no value")
    }
    for name in call.inputs.keys {
      try require(names.contains(name), "\(at): \(shown(name.text)) is no input of \(call.part)")
    }
  }

  private func checkTokenizer(_ source: Source, _ at: String) throws {
    guard case .tokens(let path) = source.origin else { return }
    let exists = tokenizers.contains { $0.path.isExactly(path) }
    try require(exists, "\(at): \(shown(path)) is no tokenizer")
  }

  private func checkSource(
    _ task: ManifestTask, _ source: Source, _ when: When, _ before: [Call], _ at: String
  ) throws {
    let isLegal = source.origin.stages.contains(when)
    try require(isLegal, "\(at): a call \(when.rawValue) has no \(source.kind)")
    try require(source.only == nil || when == .pass, "\(at): only is for calls in a pass")
    let isSingle = source.multiply == nil || source.divide == nil
    try require(isSingle, "\(at): multiply and divide")
    switch source.origin {
    case .latent, .column, .constant, .guided, .tokens: break
    case .picture(let picture): try checkPicture(task, picture, at)
    case .tensor(let name):
      let exists = task.inputs.tensors[name] != nil
      try require(exists, "\(at): the task takes no tensor \(shown(name))")
    case .number(let name):
      let exists = task.inputs.numbers[name] != nil
      try require(exists, "\(at): the task takes no number \(shown(name))")
    case .output(let output):
      let call = before.first { $0.id == output.call }
      let isVisible = call.map { $0.when == .once || $0.when == when } == true
      let place = "\(at): \(shown(output.call)) is no earlier call whose output it can take"
      try require(isVisible, place)
      _ = try outputSpec(task, output)
    }
  }

  private func checkPicture(
    _ task: ManifestTask, _ picture: PictureSource, _ at: String
  ) throws {
    let pictures = task.inputs.pictures
    let exists = pictures[picture.name] != nil
    try require(exists, "\(at): the task takes no picture \(shown(picture.name))")
    if let outside = picture.outside {
      let isMask = pictures[outside]?.kind == .mask
      try require(isMask, "\(at): the task takes no mask \(shown(outside))")
    }
    try require(picture.every == nil || picture.mean == nil, "\(at): every and mean")
  }

  private func checkResults(_ task: ManifestTask) throws {
    let flow = task.flow
    let at = "task \(task.name)"
    let results: [(String, OutputName?, When)] = [
      ("prediction", flow.prediction, .pass), ("refined", flow.refined, .guided),
      ("picture", flow.picture, flow.hasLoop ? .end : .once),
    ]
    for (key, output, when) in results {
      guard let output else { continue }
      let place = "\(at): \(key): \(shown(output.call)) is no call \(when.rawValue)"
      try require(flow.call(output.call)?.when == when, place)
      _ = try outputSpec(task, output)
    }
    let isLoopless =
      flow.start == nil && flow.refined == nil
      && flow.calls.allSatisfy { $0.when == .once }
    try require(flow.hasLoop || isLoopless, "\(at): a loop without a prediction")
    try require(flow.hasLoop || task.guidance.kind == .none, "\(at): guidance without a loop")
    let isRefinedLegal = !flow.calls(.guided).isEmpty == (flow.refined != nil)
    try require(isRefinedLegal, "\(at): refined and guided calls come together")
    let isStartLegal = (flow.start != nil) == (task.strength != nil)
    try require(isStartLegal, "\(at): start and strength come together")
    guard let start = flow.start else { return }
    switch start.origin {
    case .tokens, .number: throw Broken(reason: "\(at): start is no latent")
    default: try checkSource(task, start, .once, flow.calls(.once), "\(at): start")
    }
  }
}
