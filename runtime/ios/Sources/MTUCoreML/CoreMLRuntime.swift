#if canImport(CoreML)
  import CoreML
  import Foundation
  import MTUCore

  #if os(iOS)
    import os
  #endif

  /// Runs the `.mlpackage` parts of a bundle by Core ML.
  ///
  /// A package is compiled once and kept under its hash; the first load of a model on a device
  /// may take minutes, while the system prepares it for its processors (`Pipeline.prewarm`).
  public struct CoreMLRuntime: PartRuntime {
    /// Bundles for Core ML.
    public var target: Target { .coreml }

    private let options: CoreMLOptions
    private let system: SystemVersion

    /// Opens nothing yet.
    public init(_ options: CoreMLOptions = CoreMLOptions()) {
      self.init(options, system: .current)
    }

    init(_ options: CoreMLOptions, system: SystemVersion) {
      self.options = options
      self.system = system
    }

    /// Compiles the package where it was not compiled yet, and loads the entry.
    ///
    /// Throws `MTUError.runtimeMissing` where the system is too old for it, and
    /// `MTUError.bundleRefused` of rule 6 where the package is not that of the manifest.
    public func open(_ part: LoadedPart) async throws -> any PartSession {
      let function = try system.function(of: part)
      let units = try computeUnits(of: part)
      let compiled = try CompiledModels(options)
      do {
        let url = try await compiled.url(of: part)
        return CoreMLSession(part, try await loaded(url, function, units))
      } catch let error where error is MTUError || error is CancellationError {
        throw error
      } catch {
        try Task.checkCancellation()
        return try await openAgain(part, compiled, function, units, error)
      }
    }

    /// Removes every compiled model but those of these parts (`ModelBundle.partHashes`).
    public func removeCompiledModels(except hashes: Set<String> = []) throws {
      try CompiledModels(options).removeAll(except: hashes)
    }

    /// After a failure once more from the package: a compiled model may be of an older system.
    private func openAgain(
      _ part: LoadedPart, _ compiled: CompiledModels, _ function: String?, _ units: ComputeUnits,
      _ error: any Error
    ) async throws -> any PartSession {
      compiled.remove(part)
      do {
        let url = try await compiled.url(of: part)
        return CoreMLSession(part, try await loaded(url, function, units))
      } catch let error where error is MTUError || error is CancellationError {
        throw error
      } catch {
        try Task.checkCancellation()
        throw MTUError.partFailed(part: part.name, phase: .open, reason: reason(error, part))
      }
    }

    private func computeUnits(of part: LoadedPart) throws -> ComputeUnits {
      if let units = options.computeUnits { return units }
      guard let name = part.options["compute_unit"] else { return .all }
      guard let units = ComputeUnits(rawValue: name) else {
        let legal = ComputeUnits.allCases.map(\.rawValue).joined(separator: ", ")
        throw MTUError.partFailed(
          part: part.name, phase: .open,
          reason: "compute_unit \(shown(name)) of the manifest; legal: \(legal)")
      }
      return units
    }

    private func reason(_ error: any Error, _ part: LoadedPart) -> String {
      let text = firstLine(error)
      #if os(iOS)
        let free = os_proc_available_memory() / 1_000_000
        return "\(text) (weights of \(part.bytes / 1_000_000) MB, \(free) MB are free for the app)"
      #else
        return text
      #endif
    }
  }

  /// Loads a compiled model, unless the task was cancelled while it was compiled: neither of the two
  /// can be interrupted. It is made outside of any actor and handed over in a box.
  private func loaded(
    _ url: URL, _ function: String?, _ units: ComputeUnits
  ) async throws -> Handed<MLModel> {
    try Task.checkCancellation()
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units.coreML
    if let function {
      if #available(iOS 18.0, macOS 15.0, *) {
        configuration.functionName = function
      }
    }
    return Handed(try await MLModel.load(contentsOf: url, configuration: configuration))
  }

  /// A value that one task hands to another and never uses again at the same time.
  ///
  /// Core ML's classes are not marked Sendable. Its models may be asked from any thread, and a
  /// session asks one thing at a time, so a box is safe here; it never leaves this module.
  struct Handed<Value>: @unchecked Sendable {  // see above: one user at a time
    let value: Value

    init(_ value: Value) {
      self.value = value
    }
  }
#endif
