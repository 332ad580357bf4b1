#if canImport(SwiftUI) && canImport(UIKit)
  import MTUApp
  import MTUCoreML
  import SwiftUI
  import UIKit

  @main
  struct SampleApp: App {
    @StateObject private var screen = SampleScreen()
    @Environment(\.scenePhase) private var phase

    var body: some Scene {
      WindowGroup {
        SampleView(screen: screen)
          .onAppear { screen.model.refresh() }
          .onChange(of: phase) { phase in
            if phase == .background { screen.model.enterBackground() }
          }
          .onReceive(
            NotificationCenter.default.publisher(
              for: UIApplication.didReceiveMemoryWarningNotification)
          ) { _ in
            Task { await screen.model.memoryWarning() }
          }
      }
    }
  }

  /// Tells the views when the model has changed.
  @MainActor
  final class SampleScreen: ObservableObject {
    let model: SampleModel

    init() {
      let units = ComputeUnits.cpuAndNeuralEngine
      model = SampleModel(
        documents: .documentsDirectory, receipts: .cachesDirectory,
        runtime: CoreMLRuntime(CoreMLOptions(computeUnits: units)),
        runsInBackground: units.runsInBackground)
      model.onChange = { [weak self] in self?.objectWillChange.send() }
    }

    var task: String {
      get { model.taskInfo?.name ?? "" }
      set { model.task = newValue }
    }

    var prompt: String {
      get { model.prompt }
      set { model.prompt = newValue }
    }

    /// Asynchronous, as the view's action need not be on the main actor.
    func refresh() async {
      model.refresh()
    }
  }
#endif
