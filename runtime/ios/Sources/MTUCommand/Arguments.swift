import MTUCore

/// A flag of a command.
struct Flag: Sendable {
  let name: String
  var short: String?
  /// What stands for its value in help; nil of a flag without one.
  var value: String?
  var isRepeated = false
  let help: String
}

/// What of a command line the user is told: options that are wrong or contradict each other.
struct UsageError: Error {
  let reason: String
}

/// The flags and operands of a command line, read by hand; unknown flags are refused.
struct Arguments: Sendable {
  private var values: [String: [String]] = [:]
  private(set) var operands: [String] = []

  init(_ words: some Sequence<String>, _ flags: [Flag]) throws {
    var rest = Array(words)[...]
    while let word = rest.popFirst() {
      if word == "--" {
        operands += rest
        return
      }
      guard word.hasPrefix("-"), word != "-" else {
        operands.append(word)
        continue
      }
      try take(word, &rest, flags)
    }
  }

  private mutating func take(
    _ word: String, _ rest: inout ArraySlice<String>, _ flags: [Flag]
  ) throws {
    let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    let name = String(parts[0])
    guard let flag = flags.first(where: { $0.name == name || $0.short == name }) else {
      let legal = flags.map(\.name).joined(separator: ", ")
      throw UsageError(reason: "no such option: \(name.prefix(80)); legal: \(legal)")
    }
    if flag.value == nil {
      guard parts.count == 1 else { throw UsageError(reason: "\(flag.name) takes no value") }
      values[flag.name] = [""]
      return
    }
    guard let value = parts.count == 2 ? String(parts[1]) : rest.popFirst() else {
      throw UsageError(reason: "\(flag.name) needs a value: \(flag.value ?? "")")
    }
    if !flag.isRepeated, values[flag.name] != nil {
      throw UsageError(reason: "\(flag.name) is given twice")
    }
    values[flag.name, default: []].append(value)
  }

  func has(_ flag: String) -> Bool {
    values[flag] != nil
  }

  /// The last value of a flag.
  subscript(flag: String) -> String? {
    values[flag]?.last
  }

  func all(_ flag: String) -> [String] {
    values[flag] ?? []
  }

  /// A number of a flag, within bounds.
  func number(_ flag: String, _ legal: ClosedRange<Double>) throws -> Double? {
    guard let text = self[flag] else { return nil }
    guard let number = Double(text), legal.contains(number) else {
      let bounds = "\(legal.lowerBound) to \(legal.upperBound)"
      throw UsageError(reason: "\(flag) must be \(bounds), got \(text.prefix(80))")
    }
    return number
  }

  /// A whole number of a flag, within bounds.
  func integer(_ flag: String, _ legal: ClosedRange<Int>) throws -> Int? {
    guard let text = self[flag] else { return nil }
    guard let number = Int(text), legal.contains(number) else {
      let bounds = "\(legal.lowerBound) to \(legal.upperBound)"
      throw UsageError(reason: "\(flag) must be \(bounds), got \(text.prefix(80))")
    }
    return number
  }
}
