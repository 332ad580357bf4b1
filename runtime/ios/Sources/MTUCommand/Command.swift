import Foundation
import MTUCore

/// The program `mtu`: `verify`, `run` and `bench`, with the flags and exit codes of `mtu-export`.
public struct Command: Sendable {
  /// What runs bundles of a target; throws `MTUError.runtimeMissing` where nothing does.
  public typealias Runtimes = @Sendable (Target) throws -> any PartRuntime
  /// The pixels of a picture file that the system's codecs read.
  public typealias Decoder = @Sendable (Data) throws -> RawPicture

  let runtimes: Runtimes
  let decode: Decoder?
  let print: @Sendable (String) -> Void
  let warn: @Sendable (String) -> Void

  /// `print` and `warn` get lines without their ends, for standard output and standard error.
  public init(
    runtimes: @escaping Runtimes, decode: Decoder? = nil,
    print: @escaping @Sendable (String) -> Void, warn: @escaping @Sendable (String) -> Void
  ) {
    self.runtimes = runtimes
    self.decode = decode
    self.print = print
    self.warn = warn
  }

  /// Runs a command line without the program's name; the exit code.
  public func run(_ words: [String]) async -> Int32 {
    do {
      switch words.first {
      case "verify": return try await verify(Array(words.dropFirst()))
      case "run": return try await picture(Array(words.dropFirst()))
      case "bench": return try await bench(Array(words.dropFirst()))
      case nil, "--help", "-h":
        print(Command.help)
        return 0
      case let word?:
        throw UsageError(reason: "no such command: \(word.prefix(80)); legal: verify, run, bench")
      }
    } catch {
      let (line, code) = Command.describe(error)
      warn("error: \(line)")
      return code
    }
  }

  /// The one line and the exit code of an error.
  private static func describe(_ error: any Error) -> (String, Int32) {
    switch error {
    case let error as UsageError: (error.reason, 2)
    case let error as Failure: (error.reason, error.code)
    case is CancellationError: ("interrupted; nothing was written", 130)
    case let error as MTUError:
      switch error {
      case .requestRefused: (error.description, 2)
      case .bundleRefused: (error.description, 3)
      case .partFailed, .runtimeMissing, .notFinite: (error.description, 4)
      case .outOfMemory: (error.description, 6)
      case .closed: (error.description, 70)
      }
    default: ("internal error, please report it: \(firstLine(error))", 70)
    }
  }

  /// Flags of every command.
  static let common = [
    Flag(name: "--json", help: "print JSON and nothing else on standard output"),
    Flag(name: "--verbose", short: "-v", help: "say what is loaded"),
    Flag(name: "--help", short: "-h", help: "describe the flags"),
  ]

  /// The command's arguments; nil where only help was asked for, which is printed.
  func arguments(_ words: [String], _ use: String, _ flags: [Flag]) throws -> Arguments? {
    let all = flags + Command.common
    let arguments = try Arguments(words, all)
    guard arguments.has("--help") else { return arguments }
    let lines = all.map { flag in
      let names = [flag.name, flag.short].compactMap { $0 }.joined(separator: ", ")
      return "  \([names, flag.value].compactMap { $0 }.joined(separator: " "))  \(flag.help)"
    }
    print(([use] + lines).joined(separator: "\n"))
    return nil
  }

  func open(_ folder: String) throws -> ModelBundle {
    try ModelBundle.open(URL(fileURLWithPath: folder))
  }

  private static let help = """
    mtu verify BUNDLE...       run bundles against their goldens
    mtu run BUNDLE -o FILE     make a picture with a bundle
    mtu bench BUNDLE           measure pictures of a bundle on this machine
    Each command says more with --help. Exit codes: 0 done, 1 below a floor, 2 options, 3 the bundle,
    4 the runtime, 6 memory, disk or permission, 70 an internal error, 130 interrupted.
    """
}

/// An error with an exit code of its own.
struct Failure: Error {
  let reason: String
  let code: Int32
}
