// swift-tools-version: 6.0
import PackageDescription

var targets: [Target] = [
  .target(name: "MTUCore"),
  .target(name: "MTUCommand", dependencies: ["MTUCore"]),
  .testTarget(name: "MTUCoreTests", dependencies: ["MTUCore"]),
  .testTarget(name: "MTUCommandTests", dependencies: ["MTUCommand", "MTUCore"]),
]
var program: [Target.Dependency] = ["MTUCommand", "MTUCore"]
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
    .executable(name: "mtu", targets: ["mtu"]),
  ],
  targets: targets,
  swiftLanguageModes: [.v6]
)
