// The bench app without a screen, over the stub: the tests of the driver start it as the app.
//   MTU_BENCH=REQUEST BenchAppProbe DOCUMENTS
import Foundation
import MTUBench

let documents = URL(fileURLWithPath: CommandLine.arguments[1])
let app = BenchApp(
  documents: documents,
  engines: ["coreml": { try JobEngine.coreML($0, $1) }],
  version: "1.0", build: "1",
  device: BenchDevice(model: "Linux", os: "Linux with a stub of Core ML", emulated: true),
  state: { BenchState(thermalStatus: 0, freeMemory: 1_000_000_000) },
  out: { FileHandle.standardOutput.write(Data("\($0)\n".utf8)) })
let request = ProcessInfo.processInfo.environment[BenchApp.variable] ?? ""
exit(await app.answer(request) ? 0 : 1)
