#if canImport(CoreML)
  import Foundation
  import MTUCore

  /// The system's version, as far as Core ML's functions and files depend on it.
  struct SystemVersion: Sendable {
    /// Of iOS; macOS 13, 14 and 15 are as 16, 17 and 18.
    let iOS: Int

    static var current: SystemVersion {
      let major = ProcessInfo.processInfo.operatingSystemVersion.majorVersion
      #if os(macOS)
        return SystemVersion(macOS: major)
      #elseif os(iOS)
        return SystemVersion(iOS: major)
      #else
        return SystemVersion(iOS: 18)  // the stub: what it has is of iOS 18
      #endif
    }

    init(iOS: Int) {
      self.iOS = iOS
    }

    init(macOS: Int) {
      iOS = macOS < 26 ? macOS + 3 : macOS
    }

    /// The name of the function to set; nil for `main`. Throws `MTUError.runtimeMissing` where the
    /// system cannot open the part.
    func function(of part: LoadedPart) throws -> String? {
      if let target = part.options["deployment_target"], let wanted = SystemVersion(target: target),
        wanted.iOS > iOS
      {
        throw older(wanted.iOS, "\(part.name) was exported for \(target)")
      }
      guard part.entry != "main" else { return nil }
      guard iOS >= SystemVersion.functions else {
        let reason = "\(part.name) holds several tasks as functions, of which \(part.entry) is one"
        throw older(SystemVersion.functions, reason)
      }
      return part.entry
    }

    private static let functions = 18

    private init?(target: String) {
      let digits = Int(target.drop { !$0.isNumber })
      switch (digits, target.hasPrefix("macOS")) {
      case (let number?, true): self.init(macOS: number)
      case (let number?, false): self.init(iOS: number)
      default: return nil
      }
    }

    private func older(_ wanted: Int, _ reason: String) -> MTUError {
      let macOS = wanted < 26 ? wanted - 3 : wanted
      return .runtimeMissing(
        .coreml,
        reason:
          "\(reason), which needs iOS \(wanted) or macOS \(macOS); export one task, or for an "
          + "older system"
      )
    }
  }
#endif
