import Foundation

// The numbered rules of the contract that the manifest and the list of files decide: 5, 7, 8, 9 and
// 13. Each function throws `Broken` with the place.

let goldensFile = "goldens.safetensors"
let constantsFile = "constants.safetensors"
private let largestPart = 64_000_000_000
private let largestGoldens = 4_000_000_000
private let largestFile = 256_000_000

extension Manifest {
  /// Rule 5.
  func checkDistinctPaths() throws {
    let paths = records.map(\.path)
    try requireDistinct(paths, "path")
    try requireDistinct(tokenizers.map(\.path), "tokenizer")
    let all = Set(paths.map(Exact.init))
    for path in paths {
      let names = path.split(separator: "/")
      for count in 1..<max(1, names.count) {
        let outer = names.prefix(count).joined(separator: "/")
        try require(!all.contains(Exact(outer)), "path \(shown(path)) lies within \(shown(outer))")
      }
    }
  }

  /// Rule 7.
  func checkOpened(_ files: BundleFiles) throws {
    let listed = Set(self.files.map { Exact($0.path) })
    let opened =
      tokenizers.map(\.path) + parts.flatMap(\.data)
      + [constantsFile, goldensFile].filter(files.has)
    for path in opened {
      try require(listed.contains(Exact(path)), "files has no entry for \(shown(path))")
    }
  }

  /// Rule 8, but for the inside of ONNX files.
  func checkNames(_ files: BundleFiles) throws {
    try requireDistinct(parts.map(\.name), "part")
    try requireDistinct(tasks.map(\.name), "task")
    let tables = schedules.map {
      "\($0.steps) steps, \($0.strength.map { "\($0)" } ?? "no") strength"
    }
    try requireDistinct(tables, "table")
    for task in tasks {
      try requireDistinct(task.flow.calls.map(\.id), "call of task \(task.name):")
    }
    for part in parts {
      try checkNames(part)
      guard target == .onnx else { continue }
      for entry in part.entries {
        try part.requireFile(files, entry.name, "parts: \(part.name): entry")
      }
    }
  }

  private func checkNames(_ part: Part) throws {
    let at = "parts: \(part.name)"
    try require(part.name != "pipeline", "no part is called pipeline")
    let callers = tasks.filter { $0.flow.calls.contains { $0.part == part.name } }
    let users = Set(callers.map { Exact($0.name) })
    let entries = part.entries.map { Exact($0.task) }
    let areSame = entries.count == users.count && users.isSuperset(of: entries)
    try require(!users.isEmpty && areSame, "\(at).entries are not those of the tasks that call it")
    let others = part.taskInputs.keys.map(\.text) + part.taskWeightBytes.keys.map(\.text)
    for task in others + part.witnessTasks {
      try require(users.contains(Exact(task)), "\(at): \(shown(task)) is no task of its entries")
    }
    let names = part.inputs.map(\.name)
    try requireDistinct(names, "input of \(part.name):")
    try requireDistinct(part.outputs.map(\.name), "output of \(part.name):")
    for inputs in part.taskInputs.values {
      let areAlike = inputs.map { Exact($0.name) } == names.map(Exact.init)
      try require(areAlike, "\(at).task_inputs: the names are not those of inputs")
    }
  }

  /// Rule 9.
  func checkTables() throws {
    for (index, table) in schedules.enumerated() {
      let at = "loop.schedules[\(index)]"
      for (i, pass) in table.passes.enumerated() {
        let back = pass.x.dropFirst(i + 1) + pass.m.dropFirst(i + 1)
        try require(back.allSatisfy { $0 == 0 }, "\(at): pass \(i) looks back before the start")
        guard case .number = pass.columns["timestep"] else {
          throw Broken(reason: "\(at): pass \(i) has no timestep")
        }
      }
      let isLegal = table.strength != nil || table.startPicture == 0
      try require(isLegal, "\(at): start.picture needs a strength")
    }
  }

  /// Rule 13, but for the inside of ONNX files.
  func checkLimits() throws {
    for part in parts { try requireAtMost(part.file, largestPart) }
    for file in files {
      try requireAtMost(file, file.path == goldensFile ? largestGoldens : largestFile)
    }
  }

  /// What rules 8 and 13 say of the inside of ONNX files.
  func checkGraphs(_ files: BundleFiles) throws {
    guard target == .onnx else { return }
    for part in parts {
      for entry in Set(part.entries.map { Exact($0.name) }) {
        try Task.checkCancellation()
        let path = "\(part.file.path)/\(entry.text)"
        let bytes = try Data(contentsOf: files.url(path), options: .alwaysMapped)
        let names = try bytes.withUnsafeBytes { try ONNXFile.locations($0, path) }
        for name in names.sorted() {
          try part.requireFile(files, name, "\(path): external data")
        }
      }
    }
  }
}

extension Part {
  /// The end of rule 8, of an entry and of each location of external data.
  fileprivate func requireFile(_ files: BundleFiles, _ name: String, _ what: String) throws {
    let exists = isPlainName(name) && files.has("\(file.path)/\(name)")
    try require(exists, "\(what) \(shown(name)) is no file of \(file.path)")
  }
}

private func requireAtMost(_ file: FileRecord, _ most: Int) throws {
  try require(file.bytes <= most, "\(file.path): \(file.bytes) bytes, at most \(most)")
}

private func requireDistinct(_ names: [String], _ what: String) throws {
  var seen: Set<Exact> = []
  for name in names {
    try require(seen.insert(Exact(name)).inserted, "\(what) \(shown(name)) is there twice")
  }
}
