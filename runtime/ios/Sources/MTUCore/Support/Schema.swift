/// JSON Schema in the keywords that the contract lists, and no others.
struct Schema: Sendable {
  /// The form of `manifest.json`.
  static let manifest = Result {
    Schema(try JSON.parse(Array(manifestSchema.utf8), "manifest.schema.json"))
  }

  private let root: JSON

  init(_ root: JSON) {
    self.root = root
  }

  /// Throws `Broken` with the place of the first value that the schema refuses.
  func check(_ value: JSON) throws {
    try Schema.check(value, root.object ?? JSONObject(), "manifest.json")
  }

  private static func check(_ value: JSON, _ schema: JSONObject, _ at: String) throws {
    if let options = schema["anyOf"]?.list { try checkAny(value, options, at) }
    if let type = schema["type"]?.string {
      try require(isOf(type, value), "\(at) must be \(type)")
    }
    if let constant = schema["const"] {
      try require(value == constant, "\(at) must be \(constant.string ?? "another value")")
    }
    if let options = schema["enum"]?.list {
      let names = options.compactMap(\.string).joined(separator: ", ")
      try require(options.contains(value), "\(at) must be one of \(names)")
    }
    switch value {
    case .number(let number): try checkNumber(number, schema, at)
    case .string(let string): try checkString(string, schema, at)
    case .list(let list):
      try within(Double(list.count), schema, "minItems", "maxItems", "\(at): items")
      guard let items = schema["items"]?.object else { return }
      for (index, item) in list.enumerated() { try check(item, items, "\(at)[\(index)]") }
    case .object(let object): try checkObject(object, schema, at)
    case .null, .bool: break
    }
  }

  private static func isOf(_ type: String, _ value: JSON) -> Bool {
    switch (type, value) {
    case ("object", .object), ("array", .list), ("string", .string), ("boolean", .bool),
      ("null", .null), ("number", .number):
      true
    case ("integer", .number(let number)): number.rounded(.towardZero) == number
    default: false
    }
  }

  /// The refusal that lies deepest is the one that says most.
  private static func checkAny(_ value: JSON, _ options: [JSON], _ at: String) throws {
    var farthest = Broken(reason: "")
    for option in options {
      do {
        return try check(value, option.object ?? JSONObject(), at)
      } catch let error as Broken {
        if error.reason.utf8.count > farthest.reason.utf8.count { farthest = error }
      }
    }
    throw farthest
  }

  private static func checkNumber(_ value: Double, _ schema: JSONObject, _ at: String) throws {
    try within(value, schema, "minimum", "maximum", at)
    if let above = schema["exclusiveMinimum"]?.number {
      try require(value > above, "\(at) must be above \(above)")
    }
  }

  private static func checkString(_ value: String, _ schema: JSONObject, _ at: String) throws {
    let length = Double(value.unicodeScalars.count)
    try within(length, schema, "minLength", "maxLength", "\(at): length")
    guard let text = schema["pattern"]?.string else { return }
    let pattern = Pattern(text)
    try require(pattern != nil, "\(at): pattern \(text) is not understood")
    let fits = pattern?.matches(value) == true
    try require(fits, "\(at): \(shown(value)) does not match \(text)")
  }

  private static func checkObject(_ value: JSONObject, _ schema: JSONObject, _ at: String) throws {
    try within(Double(value.count), schema, "minProperties", "maxProperties", "\(at): keys")
    for key in (schema["required"]?.list ?? []).compactMap(\.string) {
      try require(value[key] != nil, "\(at): \(key) is missing")
    }
    let properties = schema["properties"]?.object ?? JSONObject()
    let others = schema["additionalProperties"]
    let names = schema["propertyNames"]?.object
    for (key, inner) in value.entries {
      if let names { try check(.string(key), names, "\(at): key \(shown(key))") }
      let known = properties[key] ?? others
      try require(known != .bool(false), "\(at): unknown key \(shown(key))")
      if let known = known?.object { try check(inner, known, "\(at).\(key.prefix(80))") }
    }
  }

  private static func within(
    _ value: Double, _ schema: JSONObject, _ least: String, _ most: String, _ what: String
  ) throws {
    let least = schema[least]?.number ?? -.infinity
    let most = schema[most]?.number ?? .infinity
    let legal = least <= value && value <= most
    try require(legal, "\(what) must be \(least) to \(most), got \(value)")
  }
}
