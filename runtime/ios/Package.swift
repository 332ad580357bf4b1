// swift-tools-version: 6.0
import PackageDescription

// Linux has no Core ML: a module of its names that computes formulas, for tests. See README.md.
let stub: [Target.Dependency] = Context.environment["MTU_STUB_COREML"] == "1" ? ["CoreML"] : []

var targets: [Target] = [
  .target(name: "MTUCore"),
  .target(name: "MTUImages", dependencies: ["MTUCore"]),
  .target(name: "MTUCoreML", dependencies: ["MTUCore"] + stub),
  .target(name: "MTUBench", dependencies: ["MTUCore", "MTUCoreML"]),
  .target(name: "MTUApp", dependencies: ["MTUBench", "MTUCore"]),
  .target(name: "MTUCommand", dependencies: ["MTUCore"]),
  .testTarget(name: "MTUCoreTests", dependencies: ["MTUCore"]),
  .testTarget(name: "MTUCommandTests", dependencies: ["MTUCommand", "MTUCore"]),
  .testTarget(name: "MTUAppTests", dependencies: ["MTUApp", "MTUBench", "MTUCore"]),
]
if !stub.isEmpty {
  targets += [
    .target(name: "CoreML", path: "Stub/CoreML"),
    .executableTarget(
      name: "CoreMLProbe", dependencies: ["MTUCoreML", "MTUCore"], path: "Stub/Probe"),
    .executableTarget(name: "BenchAppProbe", dependencies: ["MTUBench"], path: "Stub/App"),
    .testTarget(
      name: "MTUCoreMLTests", dependencies: ["CoreML", "CoreMLProbe", "MTUCoreML", "MTUCore"]),
    .testTarget(name: "MTUBenchTests", dependencies: ["MTUBench", "MTUCoreML", "MTUCore"]),
  ]
}
var program: [Target.Dependency] = ["MTUCommand", "MTUCore", "MTUCoreML", "MTUImages"]
var settings: [SwiftSetting] = []

// ONNX Runtime, for tests on machines without Core ML: a folder with its C header at build time,
// its library (MTU_ORT_LIBRARY) at run time. See toolchain.py.
if let headers = Context.environment["MTU_ORT_HEADERS"] {
  let include: [SwiftSetting] = [.unsafeFlags(["-Xcc", "-I\(headers)"])]
  program.append("MTUOnnxTest")
  settings.append(.define("MTU_ORT"))
  targets += [
    .systemLibrary(name: "COnnxRuntime"),
    .target(
      name: "MTUOnnxTest", dependencies: ["MTUCore", "COnnxRuntime"], swiftSettings: include),
    .testTarget(
      name: "MTUOnnxTests", dependencies: ["MTUOnnxTest", "MTUCore"], swiftSettings: include),
  ]
  settings += include
}

targets.append(
  .executableTarget(name: "mtu", dependencies: program, swiftSettings: settings))

let package = Package(
  name: "MTUExport",
  platforms: [.iOS(.v16), .macOS(.v13)],
  products: [
    .library(name: "MTUCore", targets: ["MTUCore"]),
    .library(name: "MTUImages", targets: ["MTUImages"]),
    .library(name: "MTUCoreML", targets: ["MTUCoreML"]),
    .library(name: "MTUBench", targets: ["MTUBench"]),
    .library(name: "MTUApp", targets: ["MTUApp"]),
    .executable(name: "mtu", targets: ["mtu"]),
  ],
  targets: targets,
  swiftLanguageModes: [.v6]
)
