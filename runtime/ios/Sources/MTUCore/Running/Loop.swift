// Guidance and the loop over a table: "Guidance" and "The loop" of the contract.

/// What a prediction is asked with: whether it has the prompt and the image.
struct Branch: Sendable, Equatable {
  let text: Bool
  let image: Bool

  static let prompted = Branch(text: true, image: true)
}

extension Guidance {
  /// `none` where the scales turn guidance off, as in diffusers.
  private var effective: GuidanceKind {
    let isOff = (kind != .none && (text ?? 2) <= 1) || (kind == .textImage && (image ?? 1) < 1)
    return isOff ? .none : kind
  }

  var branches: [Branch] {
    switch effective {
    case .none: [.prompted]
    case .text: [Branch(text: false, image: true), .prompted]
    case .textImage:
      [Branch(text: false, image: false), Branch(text: false, image: true), .prompted]
    }
  }

  /// The guided sum m of the predictions of the branches, formed in float64.
  func guided(_ outputs: [Tensor]) -> Tensor {
    let scales: [Double]
    switch effective {
    case .none: return outputs[0]
    case .text: scales = [text ?? 0]
    case .textImage: scales = [image ?? 0, text ?? 0]
    }
    let floats = outputs.map(\.floats)
    let sums = floats[0].indices.map { i in
      scales.indices.reduce(Double(floats[0][i])) { sum, k in
        sum + scales[k] * (Double(floats[k + 1][i]) - Double(floats[k][i]))
      }
    }
    return Tensor(shape: outputs[0].shape, floats: sums.map { Float($0) })
  }
}

/// x before a pass, and the guided m that it gave.
struct PassState: Sendable {
  let x: Tensor
  let m: Tensor
}

/// How many passes a coefficient looks back, its own among them.
private let history = 4

extension Schedule {
  /// x before the first pass.
  func start(_ noise: Tensor, _ picture: Tensor?) -> Tensor {
    var terms = [(factor: Double(Float(startNoise)), tensor: noise.entry(0))]
    if let picture { terms.append((Double(Float(startPicture)), picture)) }
    return Tensor.weightedSum(terms)
  }

  /// The guided m of pass `index` at x, checked.
  func ask(
    _ index: Int, _ x: Tensor, _ denoise: @Sendable (Tensor, Pass) async throws -> Tensor
  ) async throws -> Tensor {
    let pass = passes[index]
    let m = try await denoise(x.scaled(pass.inputScale), pass)
    guard m.shape == x.shape, m.isFinite else { throw MTUError.notFinite(pass: index + 1) }
    return m
  }

  /// x after pass `index`, from the states up to and with it, newest first.
  func advance(_ index: Int, _ states: [PassState], _ noise: Tensor) -> Tensor {
    let pass = passes[index]
    var sums = [Double](repeating: 0, count: states[0].x.floats.count)
    for (k, state) in states.prefix(history).enumerated() {
      let (x, m) = (state.x.floats, state.m.floats)
      for i in sums.indices { sums[i] += pass.x[k] * Double(x[i]) + pass.m[k] * Double(m[i]) }
    }
    if pass.noise != 0 { noise.entry(index + 1).add(to: &sums, pass.noise) }
    return Tensor(shape: states[0].x.shape, floats: sums.map { Float($0) })
  }

  /// The last x. `passed` gets the number of each pass, from 1, and x after it.
  func run(
    _ noise: Tensor, _ picture: Tensor?,
    _ denoise: @Sendable (Tensor, Pass) async throws -> Tensor,
    passed: @Sendable (Int, Tensor) -> Void = { _, _ in }
  ) async throws -> Tensor {
    var x = start(noise, picture)
    var states: [PassState] = []
    for index in passes.indices {
      let m = try await ask(index, x, denoise)
      states = [PassState(x: x, m: m)] + states.prefix(history - 1)
      x = advance(index, states, noise)
      passed(index + 1, x)
    }
    return x
  }
}
