import Foundation
import Testing

@testable import MTUCore

/// A case of `loops.json`.
struct LoopVector: Sendable, CustomTestStringConvertible {
  let value: JSON

  var testDescription: String { value["name"]?.string ?? "" }

  static let document = Result { try json("loops.json") }
  static let tensors = Result { try safetensors("loops.safetensors") }
  static let all = ((try? document.get())?["cases"]?.list ?? []).map { LoopVector(value: $0) }
}

/// Parts of `loops.json`: a closed form, in float64.
struct ClosedForm: Sendable {
  let weights: [String: [Double]]
  let parts: [Part]

  init(_ document: JSON) throws {
    var weights: [String: [Double]] = [:]
    var parts: [Part] = []
    for value in try given(document["parts"]?.list) {
      let field = Field(try given(value.object), "parts")
      let name = try field.string("name")
      weights[name] = value["inputs"]?.list?.compactMap { $0["weight"]?.number }
      parts.append(
        Part(
          name: name, kind: .network, file: FileRecord(path: name, bytes: 0, sha256: ""), data: [],
          entries: [], inputs: try field.specs("inputs"), outputs: try field.specs("outputs"),
          taskInputs: [:], weightBytes: 0, taskWeightBytes: [:], witnessTasks: []))
    }
    self.weights = weights
    self.parts = parts
  }

  func run(_ name: String, _ feeds: [String: Tensor]) throws -> [String: Tensor] {
    let part = try given(parts.first { $0.name == name })
    let weights = try given(weights[name])
    #expect(feeds.count == part.inputs.count)
    var outputs: [String: Tensor] = [:]
    for (j, output) in part.outputs.enumerated() {
      let batch = output.shape[0]
      let count = Tensor.count(output.shape) / batch
      var sums = [Double](repeating: 0, count: batch * count)
      for (k, input) in part.inputs.enumerated() {
        let tensor = try given(feeds[input.name])
        #expect(tensor.shape == input.shape && tensor.elementType == input.type)
        let numbers = tensor.floats.map(Double.init) + tensor.ints.map(Double.init)
        let length = numbers.count / input.shape[0]
        for b in 0..<batch {
          let from = input.shape[0] == 1 ? 0 : b * length
          for t in 0..<max(length, count) {
            sums[b * count + t % count] +=
              weights[k] * (numbers[from + t % length] * cos(Double(t + k + 7 * j)))
          }
        }
      }
      outputs[output.name] = Tensor(shape: output.shape, floats: sums.map { Float(tanh($0)) })
    }
    return outputs
  }
}

@Suite struct LoopTests {
  @Test func everyCaseIsRead() {
    #expect(LoopVector.all.count > 20)
  }

  @Test(arguments: LoopVector.all)
  func loops(_ vector: LoopVector) async throws {
    let document = try LoopVector.document.get()
    let tensors = try LoopVector.tensors.get()
    let form = try ClosedForm(document)
    let asked = try given(vector.value["request"])
    var taskValue = try given(vector.value["task"])
    if let guidance = asked["guidance"] {
      taskValue = taskValue.with(guidance, at: steps(["guidance"])[...])
    }
    let task = try ManifestTask(Field(try given(taskValue.object), "task"))
    let manifest = try manifest(document, form, task)
    var constants: [Exact: Tensor] = [:]
    for name in tensors.entries.keys.map(\.text) where name.hasPrefix("constants/") {
      constants[Exact(String(name.dropFirst("constants/".count)))] = try tensors.tensor(name)
    }
    try manifest.checkFlow(task)
    try manifest.checkWiring(task, constants)
    let prepared = try prepared(manifest, task, asked, tensors)
    let evaluation = try await Evaluation(manifest, task, constants, prepared) { call, feeds in
      try form.run(call.part, feeds)
    } tokenize: { path, text in
      try tensors.tensor("ids/\(path)/\(text)")
    }
    var latent: Tensor?
    if let table = prepared.table, let noise = prepared.noise {
      latent = try await table.run(noise, try evaluation.start(), evaluation.denoise)
      try expectClose(latent, try tensors.tensor("expected/\(vector.testDescription)/latent"))
    }
    let picture = try await evaluation.picture(latent)
    try expectClose(picture, try tensors.tensor("expected/\(vector.testDescription)/picture"))
  }

  private func expectClose(_ actual: Tensor?, _ expected: Tensor) throws {
    let actual = try given(actual)
    #expect(actual.shape == expected.shape)
    let largest = expected.floats.map(abs).max() ?? 0
    let farthest = zip(actual.floats, expected.floats).map { abs($0 - $1) }.max() ?? 0
    #expect(farthest <= 0.00002 * largest)
  }

  private func manifest(
    _ document: JSON, _ form: ClosedForm, _ task: ManifestTask
  ) throws -> Manifest {
    let field = Field(try given(document.object), "loops")
    let latent = try field.object("latent")
    return Manifest(
      name: "loops", target: .onnx, versions: [:], options: [:],
      height: try field.object("image").integer("height"),
      width: try field.object("image").integer("width"),
      latent: Latent(
        channels: try latent.integer("channels"), factor: try latent.integer("factor")),
      tasks: [task], parts: form.parts,
      tokenizers: try field.objects("tokenizers").map(TokenizerRecord.init), files: [],
      schedules: try field.objects("schedules").map(Schedule.init), golden: nil, proof: [])
  }

  private func prepared(
    _ manifest: Manifest, _ task: ManifestTask, _ asked: JSON, _ tensors: Safetensors
  ) throws -> PreparedRequest {
    var request = Request(
      prompt: asked["prompt"]?.string, negativePrompt: asked["negative_prompt"]?.string,
      steps: asked["steps"]?.integer, strength: asked["strength"]?.number)
    for (name, value) in asked["numbers"]?.object?.entries ?? [] {
      request.numbers[name] = value.number
    }
    var pictures: [String: PictureValue] = [:]
    for name in task.inputs.pictures.keys {
      pictures[name] = .fitted(try tensors.tensor("pictures/\(name)"))
    }
    var given: [String: Tensor] = [:]
    for name in task.inputs.tensors.keys { given[name] = try tensors.tensor("tensors/\(name)") }
    let table = manifest.tables(task).first {
      $0.steps == request.steps && $0.strength == request.strength
    }
    if let table {
      let noise = try tensors.tensor("noise")
      let length = Tensor.count(noise.shape) / noise.shape[0]
      request.noise = .values(Array(noise.floats.prefix((1 + table.draws) * length)))
    }
    return try manifest.prepare(task, request, pictures, given)
  }
}
