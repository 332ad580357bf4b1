#if canImport(SwiftUI) && canImport(UIKit)
  import MTUApp
  import MTUCore
  import MTUImages
  import PhotosUI
  import SwiftUI

  struct SampleView: View {
    @ObservedObject var screen: SampleScreen

    private var model: SampleModel { screen.model }

    var body: some View {
      NavigationStack {
        List {
          Section("Bundles in this app's folder") {
            ForEach(model.bundles, id: \.self) { folder in
              Button(folder.lastPathComponent) { model.open(folder) }
            }
            if model.bundles.isEmpty { Text("Copy a bundle here with Files or Finder.") }
          }
          if let task = model.taskInfo { request(task) }
          status
        }
        .navigationTitle("mtu-export")
        .refreshable { await screen.refresh() }
        .disabled(model.isBusy)
        .toolbar {
          if model.isBusy { Button("Cancel") { model.cancel() } }
        }
      }
    }

    @ViewBuilder private func request(_ task: TaskInfo) -> some View {
      Section(task.name) {
        if let tasks = model.bundle?.tasks, tasks.count > 1 {
          Picker("Task", selection: $screen.task) {
            ForEach(tasks.map(\.name), id: \.self) { Text($0) }
          }
        }
        if task.takesPrompt {
          TextField("Prompt", text: $screen.prompt)
        }
        ForEach(task.pictures.keys.sorted(), id: \.self) { name in
          PicturePicker(model: model, name: name)
        }
        Button("Draw") { model.draw() }
        Button("Check this device") { model.check() }
      }
    }

    @ViewBuilder private var status: some View {
      Section {
        switch model.activity {
        case .idle: EmptyView()
        case .opening: ProgressView("Checking the bundle")
        case .checking(let line): ProgressView(line)
        case .drawing(let pass, let of):
          ProgressView("Pass \(pass) of \(of)", value: Double(pass), total: Double(max(of, 1)))
        }
        if let message = model.message { Text(message) }
        if let image = model.picture?.cgImage {
          Image(decorative: image, scale: 1).resizable().scaledToFit()
        }
      }
    }
  }

  /// Chooses one picture of the request.
  private struct PicturePicker: View {
    let model: SampleModel
    let name: String
    @State private var chosen: PhotosPickerItem?

    var body: some View {
      PhotosPicker(name, selection: $chosen, matching: .images)
        .onChange(of: chosen) { item in
          Task {
            guard let data = try? await item?.loadTransferable(type: Data.self) else { return }
            model.pictures[name] = try? RawPicture.decode(data)
          }
        }
    }
  }
#endif
