// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "MTUExport",
  platforms: [.iOS(.v16), .macOS(.v13)],
  products: [
    .library(name: "MTUCore", targets: ["MTUCore"])
  ],
  targets: [
    .target(name: "MTUCore")
  ],
  swiftLanguageModes: [.v6]
)
