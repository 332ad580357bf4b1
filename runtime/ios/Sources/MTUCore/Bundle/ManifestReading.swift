// From JSON that fits the schema to the types of the manifest.

extension Manifest {
  /// `document` fits `Schema.manifest`. Throws `Broken` where a number is out of this machine's
  /// range or a name is there in two spellings.
  init(_ document: JSONObject) throws {
    let field = Field(document, "manifest.json")
    name = try field.string("name")
    let label = try field.string("target")
    guard let target = Target(rawValue: label) else {
      throw MTUError.bundleRefused(
        rule: 0, reason: "target \(shown(label)): this reader takes onnx, coreml, executorch")
    }
    self.target = target
    versions = field.texts("versions")
    options = field.texts("options")
    height = try field.object("image").integer("height")
    width = try field.object("image").integer("width")
    latent = try field.optional("latent").map {
      Latent(channels: try $0.integer("channels"), factor: try $0.integer("factor"))
    }
    tasks = try field.objects("tasks").map(ManifestTask.init)
    parts = try field.objects("parts").map(Part.init)
    tokenizers = try field.objects("tokenizers").map(TokenizerRecord.init)
    files = try field.objects("files").map(FileRecord.init)
    schedules = try field.optional("loop")?.objects("schedules").map(Schedule.init) ?? []
    golden = try field.optional("golden").map(Golden.init)
    proof = try field.objects("proof").map {
      ProofEntry(
        part: try $0.string("part"), task: try $0.string("task"), stage: try $0.string("stage"),
        floorDB: try $0.number("floor_db"))
    }
  }
}

/// An object of the manifest and its place.
struct Field {
  private let value: JSONObject
  private let at: String

  init(_ value: JSONObject, _ at: String) {
    self.value = value
    self.at = at
  }

  /// The value of a key; nil where it is missing or null.
  subscript(key: String) -> JSON? {
    value[key].flatMap { $0 == .null ? nil : $0 }
  }

  private func wrong(_ key: String) -> Broken {
    Broken(reason: "\(at).\(key) is missing or out of range")
  }

  func string(_ key: String) throws -> String {
    guard let string = self[key]?.string else { throw wrong(key) }
    return string
  }

  func number(_ key: String) throws -> Double {
    guard let number = self[key]?.number else { throw wrong(key) }
    return number
  }

  func integer(_ key: String) throws -> Int {
    guard let integer = self[key]?.integer else { throw wrong(key) }
    return integer
  }

  func optionalInteger(_ key: String) throws -> Int? {
    self[key] == nil ? nil : try integer(key)
  }

  func numbers(_ key: String) throws -> [Double] {
    guard let list = self[key]?.list else { throw wrong(key) }
    return list.compactMap(\.number)
  }

  func choice<Choice: RawRepresentable<String>>(_ key: String, _: Choice.Type) throws -> Choice {
    guard let choice = Choice(rawValue: try string(key)) else { throw wrong(key) }
    return choice
  }

  func object(_ key: String) throws -> Field {
    guard let object = optional(key) else { throw wrong(key) }
    return object
  }

  func optional(_ key: String) -> Field? {
    self[key]?.object.map { Field($0, "\(at).\(key)") }
  }

  /// The objects of a list; none where it is missing.
  func objects(_ key: String) throws -> [Field] {
    let list = self[key]?.list ?? []
    return list.enumerated().compactMap { index, item in
      item.object.map { Field($0, "\(at).\(key)[\(index)]") }
    }
  }

  /// The texts of an object of anything, by key.
  func texts(_ key: String) -> [String: String] {
    var texts: [String: String] = [:]
    for (key, value) in self[key]?.object?.entries ?? [] { texts[key] = value.string }
    return texts
  }

  /// What `read` makes of each value of an object, by key.
  func map<Result>(
    _ key: String, _ read: (JSON, String) throws -> Result
  ) throws -> [Exact: Result] {
    var results: [Exact: Result] = [:]
    for (name, value) in self[key]?.object?.entries ?? [] {
      results[Exact(name)] = try read(value, "\(at).\(key).\(name.prefix(80))")
    }
    return results
  }

  /// The same of names that a pattern of the schema limits to ASCII.
  func plain<Result>(_ key: String, _ read: (Field) throws -> Result) throws -> [String: Result] {
    var results: [String: Result] = [:]
    for (name, result) in try map(key, { try read(Field($0.object ?? JSONObject(), $1)) }) {
      results[name.text] = result
    }
    return results
  }

  func specs(_ key: String) throws -> [TensorSpec] {
    try objects(key).map(TensorSpec.init)
  }
}

extension TensorSpec {
  fileprivate init(_ field: Field) throws {
    self.init(
      name: try field.string("name"), shape: try field.numbers("shape").map { Int($0) },
      type: try field.choice("dtype", ElementType.self))
  }
}

extension FileRecord {
  fileprivate init(_ field: Field) throws {
    path = try field.string("path")
    bytes = try field.integer("bytes")
    sha256 = try field.string("sha256")
  }
}

extension TokenizerRecord {
  init(_ field: Field) throws {
    path = try field.string("path")
    bos = try field.integer("bos")
    eos = try field.integer("eos")
    pad = try field.integer("pad")
    length = try field.integer("length")
  }
}

extension Golden {
  fileprivate init(_ field: Field) throws {
    prompt = try field.string("prompt")
    negativePrompt = field["negative_prompt"]?.string
    steps = try field.optionalInteger("steps")
    strength = field["strength"]?.number
  }
}

extension Part {
  init(_ field: Field) throws {
    name = try field.string("name")
    kind = try field.choice("kind", PartKind.self)
    file = try FileRecord(field)
    data = field["data"]?.list?.compactMap(\.string) ?? []
    entries = (field["entries"]?.object?.entries ?? []).map {
      Entry(task: $0.key, name: $0.value.string ?? "")
    }
    inputs = try field.specs("inputs")
    outputs = try field.specs("outputs")
    taskInputs = try field.map("task_inputs") { list, at in
      try Field.specs(list, at)
    }
    let cost = try field.object("cost")
    weightBytes = try cost.integer("weight_bytes")
    taskWeightBytes = try cost.map("task_weight_bytes") { number, _ in number.integer ?? 0 }
    witnessTasks = field["witness"]?.object?.keys ?? []
  }
}

extension Field {
  fileprivate static func specs(_ list: JSON, _ at: String) throws -> [TensorSpec] {
    try (list.list ?? []).map { try TensorSpec(Field($0.object ?? JSONObject(), at)) }
  }
}

extension Schedule {
  init(_ field: Field) throws {
    steps = try field.integer("steps")
    strength = field["strength"]?.number
    startNoise = try field.object("start").number("noise")
    startPicture = try field.object("start").number("picture")
    passes = try field.objects("passes").map(Pass.init)
  }
}

extension Pass {
  fileprivate init(_ field: Field) throws {
    var columns: [String: Column] = [:]
    for (name, value) in field["columns"]?.object?.entries ?? [] {
      columns[name] =
        value.number.map(Column.number) ?? .list(value.list?.compactMap(\.number) ?? [])
    }
    self.columns = columns
    inputScale = try field.number("input_scale")
    x = try field.numbers("x")
    m = try field.numbers("m")
    noise = try field.number("noise")
  }
}

extension ManifestTask {
  init(_ field: Field) throws {
    name = try field.string("name")
    let guidance = try field.object("guidance")
    let kind = try guidance.choice("kind", GuidanceKind.self)
    self.guidance = Guidance(
      kind: kind, text: kind == .none ? nil : try guidance.number("text"),
      image: kind == .textImage ? try guidance.number("image") : nil)
    steps = try field.integer("steps")
    strength = field["strength"]?.number
    prompt = field["prompt"]?.string
    inputs = try TaskInputs(try field.object("inputs"))
    flow = try Flow(try field.object("flow"))
  }
}

extension TaskInputs {
  fileprivate init(_ field: Field) throws {
    pictures = try field.plain("pictures") { picture in
      var input = PictureInput(kind: try picture.choice("kind", PictureKind.self))
      if picture["filter"] != nil {
        input.filter = try picture.choice("filter", PictureInput.Filter.self)
      }
      if picture["range"] != nil {
        input.range = try picture.choice("range", PictureInput.Range.self)
      }
      return input
    }
    tensors = try field.plain("tensors") { try $0.numbers("shape").map { Int($0) } }
    numbers = try field.plain("numbers") {
      NumberRange(
        default: try $0.number("default"), minimum: try $0.number("minimum"),
        maximum: try $0.number("maximum"))
    }
  }
}

extension Flow {
  fileprivate init(_ field: Field) throws {
    calls = try field.objects("calls").map(Call.init)
    start = try field.optional("start").map(Source.init)
    prediction = try field.optional("prediction").map(OutputName.init)
    refined = try field.optional("refined").map(OutputName.init)
    picture = try OutputName(try field.object("picture"))
  }
}

extension OutputName {
  fileprivate init(_ field: Field) throws {
    call = try field.string("call")
    name = try field.string("name")
  }
}

extension Call {
  fileprivate init(_ field: Field) throws {
    id = try field.string("id")
    part = try field.string("part")
    when = try field.choice("when", When.self)
    inputs = try field.map("inputs") { try Value(Field($0.object ?? JSONObject(), $1)) }
  }
}

extension Value {
  fileprivate init(_ field: Field) throws {
    sources = try field.objects("sources").map(Source.init)
    axis = try field.optionalInteger("axis")
    empty = field["empty"]?.string
  }
}

extension Source {
  fileprivate init(_ field: Field) throws {
    kind = try field.string("kind")
    origin = try Source.origin(kind, field)
    multiply = field["multiply"]?.number
    divide = field["divide"]?.number
    only = field["only"] == nil ? nil : try field.choice("only", Only.self)
  }

  private static func origin(_ kind: String, _ field: Field) throws -> Origin {
    switch kind {
    case "latent": return .latent
    case "guided": return .guided
    case "column": return .column(try field.string("name"))
    case "constant": return .constant(try field.string("name"))
    case "tensor": return .tensor(try field.string("name"))
    case "number": return .number(try field.string("name"))
    case "tokens": return .tokens(tokenizer: try field.string("tokenizer"))
    case "output": return .output(try OutputName(field))
    case "picture":
      return .picture(
        PictureSource(
          name: try field.string("name"), outside: field["outside"]?.string,
          every: try field.optionalInteger("every"), mean: try field.optionalInteger("mean")))
    default: throw Broken(reason: "\(shown(kind)) is no kind of source")
    }
  }
}
