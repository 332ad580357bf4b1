import Foundation

@testable import MTUCore

/// A copy of the bundle with the edits of `hostile.json` made.
struct EditedBundle {
  let scratch: Scratch
  let url: URL

  init(_ edits: [JSON] = []) throws {
    scratch = try Scratch()
    url = scratch.url.appendingPathComponent("bundle")
    try FileManager.default.copyItem(at: goodBundle, to: url)
    for edit in edits { try make(edit) }
  }

  func path(_ name: String) -> URL {
    url.appendingPathComponent(name)
  }

  private var manifest: URL { path("manifest.json") }

  func make(_ edit: JSON) throws {
    let op = try given(edit["op"]?.string)
    if op == "text" { return try replace(edit) }
    if op == "set" || op == "delete" {
      let keys = try given(edit["path"]?.list)
      try change(keys, op == "set" ? edit["value"] : nil)
      return
    }
    let name = try given(edit["path"]?.string)
    let file = path(name)
    switch op {
    case "seal": try seal(name)
    case "write": try Data(try unhex(edit)).write(to: file)
    case "bytes":
      var content = try bytes(file)
      let (at, new) = (try given(edit["at"]?.integer), try unhex(edit))
      content.replaceSubrange(at..<at + new.count, with: new)
      try Data(content).write(to: file)
    case "flip":
      var content = try bytes(file)
      content[try given(edit["at"]?.integer)] ^= 1 << UInt8(try given(edit["bit"]?.integer))
      try Data(content).write(to: file)
    case "truncate":
      try Data(try bytes(file).prefix(try given(edit["bytes"]?.integer))).write(to: file)
    case "pad":
      let content = try bytes(file)
      let spaces = [UInt8](
        repeating: 0x20, count: try given(edit["bytes"]?.integer) - content.count)
      try Data(content + spaces).write(to: file)
    case "rename":
      try FileManager.default.moveItem(at: file, to: path(try given(edit["to"]?.string)))
    case "link":
      let target = try given(edit["to"]?.string)
      try FileManager.default.createSymbolicLink(atPath: file.path, withDestinationPath: target)
    default: throw Missing(what: "op \(op)")
    }
  }

  func change(_ keys: [JSON], _ value: JSON?) throws {
    let document = try JSON.parse(try bytes(manifest), "manifest.json")
    try Data(document.with(value, at: keys[...]).text.utf8).write(to: manifest)
  }

  private func replace(_ edit: JSON) throws {
    let text = String(decoding: try bytes(manifest), as: UTF8.self)
    let parts = text.components(separatedBy: try given(edit["old"]?.string))
    guard parts.count == 2 else { throw Missing(what: "text that is there once") }
    try Data(parts.joined(separator: try given(edit["new"]?.string)).utf8).write(to: manifest)
  }

  /// Puts size and hash of an entry into the manifest, as they are now.
  func seal(_ name: String) throws {
    let document = try JSON.parse(try bytes(manifest), "manifest.json")
    let files = BundleFiles(url)
    for list in ["parts", "files"] {
      for (index, entry) in (document[list]?.list ?? []).enumerated()
      where entry["path"]?.string == name {
        let size = try files.below(name).reduce(0) { $0 + $1.size }
        let at: [JSON] = [.string(list), .number(Double(index))]
        try change(at + [.string("bytes")], .number(Double(size)))
        try change(at + [.string("sha256")], .string(try files.hash(name)))
      }
    }
  }

  private func unhex(_ edit: JSON) throws -> [UInt8] {
    let digits = Array(try given(edit["hex"]?.string))
    return try stride(from: 0, to: digits.count, by: 2).map {
      try given(UInt8(String(digits[$0...$0 + 1]), radix: 16))
    }
  }
}
