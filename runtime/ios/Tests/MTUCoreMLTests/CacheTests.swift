import CoreML
import Foundation
import MTUCore
import Testing

@testable import MTUCoreML

@Suite struct CacheTests {
  private func open(_ part: LoadedPart, _ folder: Folder) async throws {
    await (try folder.runtime().open(part)).close()
  }

  private func age(_ url: URL, by seconds: TimeInterval) throws {
    let date = Date().addingTimeInterval(-seconds)
    try FileManager.default.setAttributes([.modificationDate: date], ofItemAtPath: url.path)
  }

  @Test func aPackageIsCompiledOnce() async throws {
    let folder = try Folder()
    let part = try folder.package()
    for _ in 0..<3 { try await open(part, folder) }
    #expect(folder.events(.compile).count == 1)
    #expect(folder.events(.load).count == 3)
    #expect(folder.cached == [part.sha256])
    let loaded = Set(folder.events(.load).map(\.path))
    #expect(loaded == [folder.cache.appendingPathComponent("\(part.sha256)/model.mlmodelc").path])
  }

  @Test func theHashIsCheckedBeforeCompiling() async throws {
    let folder = try Folder()
    let part = try folder.package()
    try Data("more".utf8).write(to: part.url.appendingPathComponent("weights.bin"))
    let text = await refusal { try await folder.runtime().open(part) }
    #expect(text == "rule 6: part: its sha256 is not the manifest's")
    #expect(folder.events(.compile).isEmpty)
    #expect(folder.cached.isEmpty)
  }

  @Test func whatACrashLeftIsRemovedAfterAnHour() async throws {
    let folder = try Folder()
    let part = try folder.package()
    let cache = folder.cache
    let (old, new) = (
      cache.appendingPathComponent("staging-old"), cache.appendingPathComponent("staging-new")
    )
    for url in [old, new] {
      try FileManager.default.createDirectory(
        at: url.appendingPathComponent("model.mlmodelc"), withIntermediateDirectories: true)
    }
    try age(old, by: 3_700)
    try await open(part, folder)
    #expect(folder.cached == [part.sha256, "staging-new"].sorted())
  }

  @Test func whatNobodyOpensIsRemoved() async throws {
    let folder = try Folder()
    let (first, second) = (
      try folder.package("first"), try folder.package("second", extra: #""loadSeconds":0"#)
    )
    try await open(first, folder)
    try await open(second, folder)
    let place = folder.cache.appendingPathComponent(first.sha256)
    try age(place, by: 29 * 86_400)
    try await open(second, folder)
    #expect(folder.cached == [first.sha256, second.sha256].sorted())
    try await open(first, folder)  // it counts as used again
    let opened = try FileManager.default.attributesOfItem(atPath: place.path)[.modificationDate]
    #expect(try #require(opened as? Date).timeIntervalSinceNow > -3_600)
    try await open(second, folder)
    #expect(folder.events(.compile).count == 2)
    try age(place, by: 31 * 86_400)
    try await open(second, folder)
    #expect(folder.cached == [second.sha256])
  }

  @Test func aNameWithoutAModelIsRemovedAndNothingElseIs() async throws {
    let folder = try Folder()
    let part = try folder.package()
    let empty = String(repeating: "ab", count: 32)
    for name in [empty, "notes", "ABC"] {
      try FileManager.default.createDirectory(
        at: folder.cache.appendingPathComponent(name), withIntermediateDirectories: true)
    }
    try age(folder.cache.appendingPathComponent("notes"), by: 400 * 86_400)
    try await open(part, folder)
    #expect(folder.cached == ["ABC", part.sha256, "notes"].sorted())
  }

  @Test func anAppMayRemoveAllButSome() async throws {
    let folder = try Folder()
    let (first, second) = (
      try folder.package("first"), try folder.package("second", extra: #""loadSeconds":0"#)
    )
    try await open(first, folder)
    try await open(second, folder)
    try folder.runtime().removeCompiledModels(except: [second.sha256])
    #expect(folder.cached == [second.sha256])
  }

  @Test func twoTasksCompileTheSameAndBothRun() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""compileSeconds":0.05"#)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<6 { group.addTask { try await open(part, folder) } }
      try await group.waitForAll()
    }
    #expect(folder.events(.load).count == 6)
    #expect(folder.cached == [part.sha256])
  }

  // ------------------------------------------------------------------------- other processes

  /// The probe's process; nil where it does not start.
  private func probe(_ part: LoadedPart, _ folder: Folder) throws -> (Process, Pipe) {
    let process = Process()
    process.executableURL = try #require(Probe.url)
    process.arguments = [part.url.path, part.sha256, folder.cache.path]
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    return (process, pipe)
  }

  @Test func twoProcessesCompileTheSameAndBothRun() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""compileSeconds":0.3"#)
    let started = try (0..<3).map { _ in try probe(part, folder) }
    var outputs: Set<Data> = []
    for (process, pipe) in started {
      outputs.insert(pipe.fileHandleForReading.readDataToEndOfFile())
      process.waitUntilExit()
      #expect(process.terminationStatus == 0)
    }
    #expect(outputs.count == 1)
    #expect(folder.cached == [part.sha256])
  }

  @Test func aCrashBetweenCompilingAndRenamingLeavesNothingToTrust() async throws {
    let folder = try Folder()
    let part = try folder.package(extra: #""dies":"compile""#)
    let (process, _) = try probe(part, folder)
    process.waitUntilExit()
    #expect(process.terminationReason == .uncaughtSignal)
    #expect(process.terminationStatus == SIGKILL)
    #expect(!folder.cached.contains(part.sha256))
    let whole = try folder.package()
    try await open(whole, folder)
    #expect(folder.cached == [whole.sha256])
  }
}

/// The executable of `Stub/Probe`, beside the tests.
enum Probe {
  static var url: URL? {
    let tests = URL(fileURLWithPath: CommandLine.arguments[0]).resolvingSymlinksInPath()
    var folder = tests.deletingLastPathComponent()
    for _ in 0..<4 {
      let candidate = folder.appendingPathComponent("CoreMLProbe")
      if FileManager.default.isExecutableFile(atPath: candidate.path) { return candidate }
      folder = folder.deletingLastPathComponent()
    }
    return nil
  }
}
