// Opens one package with the cache of compiled models, in a process of its own that tests may lose:
//   CoreMLProbe PACKAGE SHA256 CACHE
import Foundation
import MTUCore
import MTUCoreML

let words = CommandLine.arguments
guard words.count == 4 else {
  print("usage: CoreMLProbe PACKAGE SHA256 CACHE")
  exit(2)
}
let part = LoadedPart(
  name: "part", url: URL(fileURLWithPath: words[1]), sha256: words[2], entry: "main",
  inputs: [TensorSpec(name: "x", shape: [1, 2], type: .float32)],
  outputs: [TensorSpec(name: "y", shape: [1, 2], type: .float32)], bytes: 0)
do {
  let runtime = CoreMLRuntime(CoreMLOptions(compiledModels: URL(fileURLWithPath: words[3])))
  let session = try await runtime.open(part)
  let outputs = try await session.run(["x": Tensor(shape: [1, 2], floats: [0.25, -0.5])])
  print(outputs["y"]?.floats ?? [])
  await session.close()
} catch {
  print(error)
  exit(1)
}
