import Foundation
import MTUCore

extension Job {
  /// Refuses registers that nothing has written and shapes that do not fit, before any engine.
  func check(_ tensors: [String: Tensor]) throws {
    var shapes = tensors.mapValues { $0.shape }
    for (index, step) in program.enumerated() {
      do {
        for (name, shape) in try written(by: step, shapes) { shapes[name] = shape }
      } catch let error as Broken {
        throw Broken(reason: "program[\(index)]: \(error.reason)")
      }
    }
    for (register, name) in expected {
      guard let shape = shapes[register], let tensor = tensors[name], tensor.shape == shape else {
        throw Broken(
          reason: "expected: \(shown(register)) and \(shown(name)) are not two arrays of one shape")
      }
    }
  }

  private func written(by step: Step, _ shapes: [String: [Int]]) throws -> [String: [Int]] {
    func shape(_ register: String) throws -> [Int] {
      guard let shape = shapes[register] else {
        throw Broken(reason: "no register \(shown(register))")
      }
      return shape
    }
    switch step {
    case .call(let name, let inputs, let outputs):
      guard let part = parts[name] else { throw Broken(reason: "no part \(shown(name))") }
      try require(
        Set(inputs.keys) == Set(part.inputs.map(\.name)),
        "its inputs are not those of \(shown(name))")
      for spec in part.inputs {
        let given = try shape(inputs[spec.name] ?? "")
        try require(given == spec.shape, "input \(shown(spec.name)) is \(spec.shape), got \(given)")
      }
      let specs = Dictionary(part.outputs.map { ($0.name, $0.shape) }) { first, _ in first }
      return try outputs.reduce(into: [:]) { written, output in
        guard let shape = specs[output.key] else {
          throw Broken(reason: "its outputs are not those of \(shown(name))")
        }
        written[output.value] = shape
      }
    case .sum(let terms, let out):
      let all = Set(try terms.map { try shape($0.register) })
      try require(all.count == 1, "its terms have several shapes")
      return [out: try shape(terms[0].register)]
    case .scale(_, let register, let out), .divide(_, let register, let out):
      return [out: try shape(register)]
    case .concat(let axis, let registers, let out):
      var result = try shape(registers[0])
      try require(axis < result.count, "no axis \(axis)")
      for register in registers.dropFirst() {
        var next = try shape(register)
        try require(next.count == result.count, "its inputs have several ranks")
        result[axis] += next[axis]
        next[axis] = result[axis]
        try require(next == result, "its inputs differ off axis \(axis)")
      }
      return [out: result]
    case .slice(let begin, let register, let out):
      var result = try shape(register)
      try require(result.first.map { begin < $0 } == true, "no entry \(begin) in \(result)")
      result[0] = 1
      return [out: result]
    }
  }
}

/// One run of a job's program, with the seconds of each part's calls.
struct ProgramRun {
  var registers: [String: Tensor]
  var calls: [String: [Double]] = [:]

  mutating func run(_ program: [Job.Step], _ sessions: [String: any PartSession]) async throws {
    for step in program {
      switch step {
      case .call(let part, let inputs, let outputs):
        guard let session = sessions[part] else { throw Broken(reason: "no part \(shown(part))") }
        let values = try inputs.mapValues { try register($0) }
        let clock = ContinuousClock()
        let begin = clock.now
        let results = try await session.run(values)
        calls[part, default: []].append(seconds(clock.now - begin))
        for (name, out) in outputs {
          guard let result = results[name] else { throw Broken(reason: "no output \(shown(name))") }
          registers[out] = result
        }
      case .sum(let terms, let out):
        registers[out] = Tensor.weightedSum(
          try terms.map { (factor: $0.factor, tensor: try register($0.register)) })
      case .scale(let by, let name, let out):
        registers[out] = try register(name).scaled(by)
      case .divide(let by, let name, let out):
        registers[out] = try register(name).divided(by)
      case .concat(let axis, let names, let out):
        registers[out] = Tensor.concatenated(try names.map { try register($0) }, axis: axis)
      case .slice(let begin, let name, let out):
        registers[out] = try register(name).entry(begin)
      }
    }
  }

  func register(_ name: String) throws -> Tensor {
    guard let tensor = registers[name] else { throw Broken(reason: "no register \(shown(name))") }
    return tensor
  }
}

/// A duration in seconds.
func seconds(_ duration: Duration) -> Double {
  Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
}
