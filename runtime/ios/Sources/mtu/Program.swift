import Foundation
import MTUCommand
import MTUCore

@main
struct Main {
  static func main() async {
    let words = Array(CommandLine.arguments.dropFirst())
    let command = Command(
      runtimes: { try runtime($0) }, decode: decoder,
      print: { print($0) },
      warn: { FileHandle.standardError.write(Data("\($0)\n".utf8)) })
    let work = Task { await command.run(words) }
    signal(SIGINT, SIG_IGN)
    let interrupt = DispatchSource.makeSignalSource(signal: SIGINT)
    interrupt.setEventHandler { work.cancel() }
    interrupt.resume()
    let code = await work.value
    interrupt.cancel()
    exit(code)
  }
}
