// Rule 10, of goldens.safetensors: each has the shape that the manifest says of it.

extension Manifest {
  /// Throws `Broken` for a golden of another shape, and for one that is not finite; where
  /// `contents` is false the file's data are not read.
  func checkGoldens(_ file: Safetensors, contents: Bool) throws {
    let names = file.entries.keys.map(\.text).sorted { $0.comesBefore($1) }
    var known: [String] = []
    for name in names {
      let path = name.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
      guard let entry = file[name], let expected = try goldenShape(path) else { continue }
      let isNoise = path.count == 3 && path[0] == "loop" && path[2] == "noise"
      let isSeveral = isNoise && (entry.shape.first ?? 0) > 0
      let shape = isSeveral ? [1] + entry.shape.dropFirst() : entry.shape
      try require(shape == expected, "golden \(shown(name)) is \(entry.shape), not \(expected)")
      known.append(name)
    }
    for name in contents ? known : [] { _ = try file.tensor(name) }
  }

  /// The shape that the manifest says of a golden; nil of names that it does not know.
  private func goldenShape(_ path: [String]) throws -> [Int]? {
    guard path.count >= 3, let task = tasks.first(where: { $0.name.isExactly(path[1]) }) else {
      return nil
    }
    let name = path.dropFirst(3).joined(separator: "/")
    if path[0] != "loop" {
      guard let part = parts.first(where: { $0.name.isExactly(path[0]) }) else { return nil }
      return (part.inputs(task.name) + part.outputs).first { $0.name.isExactly(name) }?.shape
    }
    switch path[2] {
    case "picture": return [1, 3, height, width]
    case "request":
      return task.inputs.pictures[name].map(shape) ?? task.inputs.tensors[name]
    case "noise", "outputs", "latents": return latent == nil ? nil : try latentShape()
    default: return nil
    }
  }
}
