/// What rules 8 and 13 say of the inside of an ONNX file, from its protobuf fields alone.
struct ONNXFile {
  /// Messages that lead to external data.
  private enum Message {
    case model, graph, function, node, attribute, sparse, tensor, entry

    /// The message in a field of this one.
    func inner(_ field: UInt64) -> Message? {
      switch (self, field) {
      case (.model, 7), (.attribute, 6), (.attribute, 11): .graph
      case (.model, 25): .function
      case (.graph, 1), (.function, 7): .node
      case (.graph, 5), (.attribute, 5), (.attribute, 10), (.sparse, 1), (.sparse, 2): .tensor
      case (.graph, 15), (.attribute, 22), (.attribute, 23): .sparse
      case (.function, 11), (.node, 5): .attribute
      case (.tensor, 13): .entry
      default: nil
      }
    }
  }

  private let bytes: UnsafeRawBufferPointer
  private let what: String
  private var names: Set<String> = []

  /// The names of the files of external data. Throws `Broken`, and refuses a graph in a node by
  /// rule 13. `what` names the file.
  static func locations(_ bytes: UnsafeRawBufferPointer, _ what: String) throws -> Set<String> {
    var file = ONNXFile(bytes: bytes, what: what)
    try file.walk(0..<bytes.count, .model)
    return file.names
  }

  private init(bytes: UnsafeRawBufferPointer, what: String) {
    self.bytes = bytes
    self.what = what
  }

  private mutating func walk(_ range: Range<Int>, _ message: Message) throws {
    var key = ""
    var location = ""
    var at = range.lowerBound
    while let (field, content) = try next(&at, range.upperBound) {
      if message == .entry {
        if field == 1 { key = try text(content) }
        if field == 2 { location = try text(content) }
      }
      guard let inner = message.inner(field) else { continue }
      if message == .attribute, inner == .graph {
        throw MTUError.bundleRefused(rule: 13, reason: "\(what): a node holds a graph of its own")
      }
      try walk(content, inner)
    }
    guard key == "location" else { return }
    try require(isPlainName(location), "\(what): external data at \(shown(location))")
    names.insert(location)
  }

  private func text(_ range: Range<Int>) throws -> String {
    let content = bytes[range]
    let text = String(decoding: content, as: UTF8.self)
    try require(text.utf8.elementsEqual(content), "\(what): a text that is not UTF-8")
    return text
  }

  /// The next field that has content; others are stepped over. Nil at the end.
  private func next(_ at: inout Int, _ end: Int) throws -> (UInt64, Range<Int>)? {
    while at < end {
      let tag = try number(&at, end)
      switch tag & 7 {
      case 0: _ = try number(&at, end)
      case 1: try step(&at, 8, end)
      case 2:
        let length = try number(&at, end)
        let begin = at
        try step(&at, length, end)
        return (tag >> 3, begin..<at)
      case 5: try step(&at, 4, end)
      default: throw Broken(reason: "\(what): no protobuf message")
      }
    }
    return nil
  }

  private func step(_ at: inout Int, _ length: UInt64, _ end: Int) throws {
    try require(length <= UInt64(end - at), "\(what): a field that is cut off")
    at += Int(length)
  }

  private func number(_ at: inout Int, _ end: Int) throws -> UInt64 {
    var value: UInt64 = 0
    for shift in stride(from: UInt64(0), to: 70, by: 7) {
      try require(at < end, "\(what): a number that is cut off")
      let byte = bytes[at]
      at += 1
      value |= UInt64(byte & 127) << shift
      if byte < 128 { return value }
    }
    throw Broken(reason: "\(what): a number without an end")
  }
}

/// Whether rule 8 takes it for the name of a file in a part's folder.
func isPlainName(_ name: String) -> Bool {
  guard let first = name.utf8.first, first != UInt8(ascii: "."), first != UInt8(ascii: "-") else {
    return false
  }
  return name.unicodeScalars.allSatisfy {
    switch $0 {
    case "A"..."Z", "a"..."z", "0"..."9", "_", ".", "-": true
    default: false
    }
  }
}
