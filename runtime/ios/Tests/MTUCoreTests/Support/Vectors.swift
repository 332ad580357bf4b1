import Foundation

@testable import MTUCore

/// `runtime/testdata`.
let testdata = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in
  url.deletingLastPathComponent()
}.appendingPathComponent("testdata")
let goodBundle = testdata.appendingPathComponent("edit-onnx-int8")

func bytes(_ url: URL) throws -> [UInt8] {
  Array(try Data(contentsOf: url))
}

func json(_ name: String) throws -> JSON {
  try JSON.parse(try bytes(testdata.appendingPathComponent(name)), name)
}

func safetensors(_ name: String) throws -> Safetensors {
  let path = testdata.appendingPathComponent(name).path
  return try Safetensors(path, size: try bytes(URL(fileURLWithPath: path)).count, name)
}

/// A folder of its own, removed with the last reference.
final class Scratch: Sendable {
  let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory.appendingPathComponent("mtu-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit {
    try? FileManager.default.removeItem(at: url)
  }
}

extension JSON {
  subscript(key: String) -> JSON? { object?[key] }

  /// JSON text.
  var text: String {
    switch self {
    case .null: return "null"
    case .bool(let bool): return "\(bool)"
    case .number(let number): return "\(number)"
    case .string(let string): return quoted(string)
    case .list(let list): return "[\(list.map(\.text).joined(separator: ","))]"
    case .object(let object):
      return
        "{\(object.entries.map { "\(quoted($0.key)):\($0.value.text)" }.joined(separator: ","))}"
    }
  }

  private func quoted(_ string: String) -> String {
    var text = "\""
    for unit in string.utf16 {
      let digits = String(unit, radix: 16)
      text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
    }
    return text + "\""
  }

  /// The same with another value at a path of keys and indices; nil takes what is there away.
  func with(_ value: JSON?, at path: ArraySlice<JSON>) -> JSON {
    guard let first = path.first else { return value ?? .null }
    let rest = path.dropFirst()
    switch (self, first) {
    case (.object(let object), .string(let key)):
      var changed = JSONObject()
      for (name, inner) in object.entries {
        if !name.isExactly(key) {
          _ = changed.insert(name, inner)
        } else if !rest.isEmpty || value != nil {
          _ = changed.insert(name, inner.with(value, at: rest))
        }
      }
      if object[key] == nil {
        _ = changed.insert(key, JSON.object(JSONObject()).with(value, at: rest))
      }
      return .object(changed)
    case (.list(var list), .number(let number)):
      let index = Int(number)
      if rest.isEmpty, value == nil {
        list.remove(at: index)
      } else if index == list.count {
        list.append(value ?? .null)
      } else {
        list[index] = list[index].with(value, at: rest)
      }
      return .list(list)
    default: preconditionFailure("no \(first) in \(self)")
    }
  }
}

/// Fails where it is nil.
struct Missing: Error {
  let what: String
}

func given<Item>(_ item: Item?, _ what: String = #function) throws -> Item {
  guard let item else { throw Missing(what: what) }
  return item
}
