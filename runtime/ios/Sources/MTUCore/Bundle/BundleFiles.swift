import Foundation

/// The files of a bundle, reached through no link.
struct BundleFiles: Sendable {
  private enum Kind {
    case file(size: Int)
    case folder
    case other
  }

  /// A file below a path of the manifest.
  struct Inner: Sendable, Equatable {
    /// Its path within the folder; empty for the path itself.
    let name: String
    let path: String
    let size: Int
  }

  let folder: URL

  init(_ folder: URL) {
    self.folder = folder
  }

  func url(_ path: String) -> URL {
    path.split(separator: "/").reduce(folder) { $0.appendingPathComponent(String($1)) }
  }

  func file(_ path: String) -> ByteFile {
    ByteFile(location(path), path)
  }

  private func location(_ path: String) -> String {
    path.isEmpty ? folder.path : "\(folder.path)/\(path)"
  }

  /// What lies at a path itself, a link being `other`; nil where there is nothing.
  private func kind(_ path: String) -> Kind? {
    var info = stat()
    guard lstat(location(path), &info) == 0 else { return nil }
    switch info.st_mode & S_IFMT {
    case S_IFREG: return .file(size: Int(info.st_size))
    case S_IFDIR: return .folder
    default: return .other
    }
  }

  /// Whether a plain file lies there.
  func has(_ path: String) -> Bool {
    if case .file = kind(path) { true } else { false }
  }

  /// The size of a plain file.
  func size(_ path: String) throws -> Int {
    guard case .file(let size) = kind(path) else {
      throw Broken(reason: "\(path) is no plain file")
    }
    return size
  }

  /// Rule 4, of a `path` of the manifest.
  func checkPath(_ path: String) throws {
    let name = shown(path)
    try require(path.unicodeScalars.count <= 255, "path \(name) has more than 255 characters")
    let names = path.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    let isPlain =
      !path.unicodeScalars.contains { $0 == "\\" || $0 == ":" || $0.value == 0 }
      && names.allSatisfy { $0 != "" && $0 != "." && $0 != ".." }
    try require(isPlain, "path \(name) is not plain")
    try require(!names.contains(where: isMacos), "path \(name) is a file of macOS")
    for count in 1..<names.count {
      guard case .folder = kind(names.prefix(count).joined(separator: "/")) else {
        throw Broken(reason: "path \(name) is missing or goes through a link")
      }
    }
    switch kind(path) {
    case .file: return
    case .folder: _ = try below(path)
    case .other: throw Broken(reason: "path \(name) is a link or no plain file")
    case nil: throw Broken(reason: "\(name) is missing from the bundle")
    }
  }

  /// The files of a folder in the order of their hash; of a file, itself. Throws `Broken` where
  /// there is anything but plain files and folders.
  func below(_ path: String) throws -> [Inner] {
    if case .file(let size) = kind(path) { return [Inner(name: "", path: path, size: size)] }
    var files: [Inner] = []
    try collect(path, "", &files)
    return files.sorted { $0.name.comesBefore($1.name) }
  }

  private func collect(_ path: String, _ prefix: String, _ files: inout [Inner]) throws {
    for name in try FileManager.default.contentsOfDirectory(atPath: location(path)) {
      let inner = "\(path)/\(name)"
      switch kind(inner) {
      case .file(let size):
        if !isMacos(name) { files.append(Inner(name: prefix + name, path: inner, size: size)) }
      case .folder: try collect(inner, "\(prefix)\(name)/", &files)
      case .other, nil: throw Broken(reason: "\(path): \(shown(name)) is no plain file")
      }
    }
  }

  /// Rule 6, the size of an entry of the manifest.
  func checkSize(_ record: FileRecord) throws {
    let size = try below(record.path).reduce(0) { $0 + $1.size }
    try require(size == record.bytes, "\(record.path) has \(size) bytes, not \(record.bytes)")
  }

  /// Rule 6, the hash of an entry of the manifest.
  func checkHash(_ record: FileRecord) throws {
    let hash = try self.hash(record.path)
    try require(hash == record.sha256, "\(record.path): its sha256 is not the manifest's")
  }

  func hash(_ path: String) throws -> String {
    if has(path) { return try SHA256Hash.of(file(path)) }
    var text = ""
    for inner in try below(path) {
      text += "\(try SHA256Hash.of(file(inner.path)))  \(inner.name)\n"
    }
    return SHA256Hash.of(Array(text.utf8))
  }
}

/// Whether macOS leaves files of this name in folders.
func isMacos(_ name: String) -> Bool {
  name == ".DS_Store" || name.hasPrefix("._")
}
