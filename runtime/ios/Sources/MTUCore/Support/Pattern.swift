/// A pattern of manifest.schema.json: `^`, then letters and classes, each with a count or without,
/// then `$`, which is the end of the text. Matched by code points.
struct Pattern: Sendable {
  private struct Step {
    var ranges: [ClosedRange<Unicode.Scalar>]
    var counts: ClosedRange<Int>
  }

  private let steps: [Step]

  /// Nil for a pattern of another form.
  init?(_ text: String) {
    var rest = Array(text.unicodeScalars)[...]
    guard rest.popFirst() == "^", rest.popLast() == "$" else { return nil }
    var steps: [Step] = []
    while let scalar = rest.popFirst() {
      switch scalar {
      case "[":
        guard let ranges = Pattern.ranges(&rest) else { return nil }
        steps.append(Step(ranges: ranges, counts: 1...1))
      case "{":
        guard !steps.isEmpty, let counts = Pattern.counts(&rest) else { return nil }
        steps[steps.count - 1].counts = counts
      case "\\":
        guard let literal = rest.popFirst(), literal == "." else { return nil }
        steps.append(Step(ranges: [literal...literal], counts: 1...1))
      case ".", "*", "+", "?", "(", ")", "|", "^", "$", "]", "}":
        return nil
      default:
        steps.append(Step(ranges: [scalar...scalar], counts: 1...1))
      }
    }
    self.steps = steps
  }

  /// Whether the whole text fits. A step takes as many code points as it can.
  func matches(_ text: String) -> Bool {
    var rest = text.unicodeScalars[...]
    for step in steps {
      var count = 0
      while count < step.counts.upperBound, let scalar = rest.first,
        step.ranges.contains(where: { $0.contains(scalar) })
      {
        rest.removeFirst()
        count += 1
      }
      guard count >= step.counts.lowerBound else { return false }
    }
    return rest.isEmpty
  }

  private static func ranges(
    _ rest: inout ArraySlice<Unicode.Scalar>
  ) -> [ClosedRange<Unicode.Scalar>]? {
    var ranges: [ClosedRange<Unicode.Scalar>] = []
    while let first = rest.popFirst() {
      if first == "]" { return ranges.isEmpty ? nil : ranges }
      guard first != "^", first != "\\", first != "[" else { return nil }
      let isRange = rest.first == "-" && rest.dropFirst().first.map { $0 != "]" } == true
      guard isRange else {
        ranges.append(first...first)
        continue
      }
      rest.removeFirst()
      guard let last = rest.popFirst(), first <= last else { return nil }
      ranges.append(first...last)
    }
    return nil
  }

  private static func counts(_ rest: inout ArraySlice<Unicode.Scalar>) -> ClosedRange<Int>? {
    var text = ""
    guard let end = rest.firstIndex(of: "}") else { return nil }
    text.unicodeScalars.append(contentsOf: rest[..<end])
    rest = rest[(end + 1)...]
    let numbers = text.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) }
    guard (1...2).contains(numbers.count), let least = numbers[0],
      let most = numbers[numbers.count - 1],
      least <= most
    else { return nil }
    return least...most
  }
}
