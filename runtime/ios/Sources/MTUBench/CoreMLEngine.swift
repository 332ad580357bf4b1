#if canImport(CoreML)
  import Foundation
  import MTUCore
  import MTUCoreML

  extension JobEngine {
    /// Core ML with a job's `compute_unit`; models are compiled into the job's folder.
    ///
    /// Throws an error of one line for an option that it does not know.
    public static func coreML(
      _ options: [String: String], _ folder: URL
    ) throws -> JobEngine {
      for name in options.keys where name != "compute_unit" {
        throw Broken(reason: "no option \(shown(name)); legal: compute_unit")
      }
      let name = options["compute_unit"] ?? ComputeUnits.all.rawValue
      guard let units = ComputeUnits(rawValue: name) else {
        let legal = ComputeUnits.allCases.map(\.rawValue).joined(separator: ", ")
        throw Broken(reason: "compute_unit \(shown(name)); legal: \(legal)")
      }
      let version = ProcessInfo.processInfo.operatingSystemVersion
      let text = "\(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
      return JobEngine(
        name: "Core ML", version: text,
        runtime: CoreMLRuntime(
          CoreMLOptions(
            computeUnits: units, compiledModels: folder.appendingPathComponent("compiled"))))
    }
  }
#endif
