import Foundation
import MTUCore

/// Refuses, before any work, a file that exists, or a place that cannot hold one.
func requireWritable(_ path: String, force: Bool) throws {
  let files = FileManager.default
  var isFolder: ObjCBool = false
  let name = shown(path)
  if files.fileExists(atPath: path, isDirectory: &isFolder) {
    if isFolder.boolValue { throw UsageError(reason: "\(name) is a folder") }
    if !force { throw UsageError(reason: "\(name) exists; --force replaces it") }
  }
  let folder = URL(fileURLWithPath: path).deletingLastPathComponent().path
  guard files.fileExists(atPath: folder, isDirectory: &isFolder), isFolder.boolValue else {
    throw UsageError(reason: "cannot write \(name): there is no folder \(shown(folder))")
  }
  guard files.isWritableFile(atPath: folder) else {
    throw Failure(reason: "cannot write \(name): no permission", code: 6)
  }
}

/// Writes a file at once.
func write(_ data: Data, to path: String) throws {
  do {
    try data.write(to: URL(fileURLWithPath: path), options: .atomic)
  } catch {
    throw Failure(reason: "cannot write \(shown(path)): \(firstLine(error))", code: 6)
  }
}

/// A JSON value to print, its keys in their order.
indirect enum Output {
  case null
  case bool(Bool)
  case number(Double)
  case text(String)
  case list([Output])
  case object([(String, Output)])

  /// A number that may be missing or infinite, which JSON has no form for: 999 of what is equal,
  /// -999 of what is not finite.
  static func decibels(_ number: Double) -> Output {
    .number(number.isFinite ? rounded(number, 2) : number > 0 ? 999 : -999)
  }

  var json: String { json(indent: 0) }

  private func json(indent: Int) -> String {
    let inner = String(repeating: " ", count: indent + 1)
    let outer = String(repeating: " ", count: indent)
    switch self {
    case .null: return "null"
    case .bool(let bool): return "\(bool)"
    case .number(let number):
      return number == number.rounded() && abs(number) < 1e15 ? "\(Int(number))" : "\(number)"
    case .text(let text): return Output.quoted(text)
    case .list(let list):
      if list.isEmpty { return "[]" }
      let items = list.map { inner + $0.json(indent: indent + 1) }
      return "[\n\(items.joined(separator: ",\n"))\n\(outer)]"
    case .object(let object):
      if object.isEmpty { return "{}" }
      let items = object.map { "\(inner)\(Output.quoted($0.0)): \($0.1.json(indent: indent + 1))" }
      return "{\n\(items.joined(separator: ",\n"))\n\(outer)}"
    }
  }

  private static func quoted(_ text: String) -> String {
    var quoted = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": quoted += "\\\""
      case "\\": quoted += "\\\\"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: quoted.unicodeScalars.append(scalar)
      }
    }
    return quoted + "\""
  }
}

extension Duration {
  var seconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }
}

/// A number with so many digits behind the point, whatever the language of the system.
func fixed(_ number: Double, _ digits: Int) -> String {
  String(format: "%.\(digits)f", locale: Locale(identifier: "en_US_POSIX"), number)
}

/// Rounded to so many digits behind the point.
func rounded(_ number: Double, _ digits: Int) -> Double {
  let scale = pow(10, Double(digits))
  return (number * scale).rounded() / scale
}
