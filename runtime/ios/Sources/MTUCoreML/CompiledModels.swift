#if canImport(CoreML)
  import CoreML
  import Foundation
  import MTUCore

  /// Compiled models in a folder of the app's, each below the sha256 of its package.
  ///
  /// A model is compiled to a place of its own and comes to its name by one rename, so that what
  /// bears a name is whole: after a crash, and where two processes compile the same.
  struct CompiledModels: Sendable {
    let folder: URL
    let unusedFor: TimeInterval

    private static let model = "model.mlmodelc"
    private static let staging = "staging-"
    /// Seconds after which what a crash left is removed.
    private static let abandoned: TimeInterval = 3_600

    init(_ options: CoreMLOptions) throws {
      unusedFor = options.unusedFor
      if let folder = options.compiledModels {
        self.folder = folder
      } else {
        let support = try FileManager.default.url(
          for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        folder = support.appendingPathComponent("mtu/compiled")
      }
      try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
      excludeFromBackup()
      removeStale()
    }

    /// The compiled model of a part; it is compiled where it is not there.
    ///
    /// The package is hashed before: a compiled model is trusted by its name alone.
    func url(of part: LoadedPart) async throws -> URL {
      let place = folder.appendingPathComponent(part.sha256)
      let model = place.appendingPathComponent(CompiledModels.model)
      if FileManager.default.fileExists(atPath: model.path) {
        touch(place)
        return model
      }
      let hash = try artefactSHA256(part.url)
      guard hash == part.sha256 else {
        throw MTUError.bundleRefused(
          rule: 6, reason: "\(part.name): its sha256 is not the manifest's")
      }
      let staging = folder.appendingPathComponent(CompiledModels.staging + UUID().uuidString)
      defer { try? FileManager.default.removeItem(at: staging) }
      let compiled = try await MLModel.compileModel(at: part.url)
      defer { try? FileManager.default.removeItem(at: compiled) }
      try FileManager.default.createDirectory(at: staging, withIntermediateDirectories: false)
      try FileManager.default.moveItem(
        at: compiled, to: staging.appendingPathComponent(CompiledModels.model))
      if rename(staging.path, place.path) != 0 {
        let reason = String(cString: strerror(errno))
        // another process was faster: its model is as good
        guard FileManager.default.fileExists(atPath: model.path) else {
          throw Broken(reason: "the compiled model cannot be kept: \(reason)")
        }
      }
      return model
    }

    /// Removes one that does not load, so that it is compiled again.
    func remove(_ part: LoadedPart) {
      try? FileManager.default.removeItem(at: folder.appendingPathComponent(part.sha256))
    }

    /// Removes every compiled model but those of these hashes.
    func removeAll(except hashes: Set<String>) {
      for name in names() where !hashes.contains(name) && !name.hasPrefix(CompiledModels.staging) {
        try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
      }
    }

    /// What a crash left, models that nobody opened for a long time, and names without a model.
    private func removeStale() {
      for name in names() {
        let place = folder.appendingPathComponent(name)
        let isStaging = name.hasPrefix(CompiledModels.staging)
        let limit = isStaging ? CompiledModels.abandoned : unusedFor
        let model = place.appendingPathComponent(CompiledModels.model)
        let isWhole = isStaging || FileManager.default.fileExists(atPath: model.path)
        if !isWhole || age(place) > limit { try? FileManager.default.removeItem(at: place) }
      }
    }

    private func names() -> [String] {
      let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
      return names.filter { $0.hasPrefix(CompiledModels.staging) || isHash($0) }
    }

    private func isHash(_ name: String) -> Bool {
      name.utf8.count == 64 && name.allSatisfy(\.isHexDigit)
    }

    private func age(_ place: URL) -> TimeInterval {
      let attributes = try? FileManager.default.attributesOfItem(atPath: place.path)
      return (attributes?[.modificationDate] as? Date).map { -$0.timeIntervalSinceNow } ?? 0
    }

    private func touch(_ place: URL) {
      try? FileManager.default.setAttributes([.modificationDate: Date()], ofItemAtPath: place.path)
    }

    private func excludeFromBackup() {
      #if canImport(Darwin)
        var folder = folder
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        try? folder.setResourceValues(values)
      #endif
    }
  }
#endif
