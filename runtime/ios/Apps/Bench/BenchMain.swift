#if canImport(SwiftUI) && canImport(UIKit)
  import MTUApp
  import MTUBench
  import SwiftUI
  import UIKit

  @main
  struct BenchMain: App {
    @StateObject private var screen = BenchScreen()

    var body: some Scene {
      WindowGroup {
        List(Array(screen.model.lines.enumerated()), id: \.offset) { line in
          Text(line.element).font(.caption.monospaced())
        }
        .task { await screen.serve() }
      }
    }
  }

  /// Serves the request that the app was started with, and ends.
  @MainActor
  final class BenchScreen: ObservableObject {
    let model = BenchModel()

    init() {
      model.onChange = { [weak self] in self?.objectWillChange.send() }
    }

    func serve() async {
      UIApplication.shared.isIdleTimerDisabled = true  // a phone that locks stops the app
      let info = Bundle.main.infoDictionary ?? [:]
      let documents = URL.documentsDirectory
      let model = model
      let app = BenchApp(
        documents: documents,
        engines: ["coreml": { try JobEngine.coreML($0, $1) }],
        version: info["CFBundleShortVersionString"] as? String ?? "unknown",
        build: info["CFBundleVersion"] as? String ?? "unknown",
        device: Phone.device, state: { await Phone.state },
        out: { line in
          FileHandle.standardOutput.write(Data("\(line)\n".utf8))
          Task { @MainActor in model.add(line) }
        })
      if await model.serve(ProcessInfo.processInfo.environment, app) { exit(0) }
    }
  }
#endif
