import Foundation

/// What stands for the hashes of a bundle whose files have not changed.
enum Receipt {
  /// The manifest's hash, and size, time and number of every file that it names.
  static func text(
    _ manifest: Manifest, _ files: BundleFiles, _ manifestSHA256: String
  ) throws -> String {
    var lines = ["mtu-export receipt 1", manifestSHA256]
    for record in manifest.records {
      for inner in try files.below(record.path) {
        let path = files.file(inner.path).path
        let attributes = try FileManager.default.attributesOfItem(atPath: path)
        let time = (attributes[.modificationDate] as? Date)?.timeIntervalSince1970 ?? 0
        let number = (attributes[.systemFileNumber] as? NSNumber)?.uint64Value ?? 0
        lines.append("\(inner.size) \(time.bitPattern) \(number) \(inner.path)")
      }
    }
    return lines.joined(separator: "\n") + "\n"
  }

  static func lies(_ url: URL, inside folder: URL) -> Bool {
    let outer = folder.resolvingSymlinksInPath().standardizedFileURL.pathComponents
    let parent = url.deletingLastPathComponent().resolvingSymlinksInPath().standardizedFileURL
    return parent.pathComponents.starts(with: outer)
  }

  /// Whether a receipt says the same.
  static func holds(_ url: URL, _ text: String) -> Bool {
    (try? Data(contentsOf: url)).map { $0.elementsEqual(text.utf8) } == true
  }

  static func write(_ url: URL, _ text: String) throws {
    try Data(text.utf8).write(to: url, options: .atomic)
  }
}
