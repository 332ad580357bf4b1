#if canImport(CoreML)
  import CoreML
  import Dispatch
  import Foundation
  import MTUCore

  /// One loaded entry. The model stays with this actor until `close`.
  actor CoreMLSession: PartSession {
    private let part: LoadedPart
    private var model: Handed<MLModel>?
    private let queue: DispatchQueue

    init(_ part: LoadedPart, _ model: Handed<MLModel>) {
      self.part = part
      self.model = model
      queue = DispatchQueue(label: "mtu.coreml.\(part.name)")
    }

    func run(_ inputs: [String: Tensor]) async throws -> [String: Tensor] {
      guard let model else { throw MTUError.closed }
      try Task.checkCancellation()
      let features = Handed(try features(of: inputs))
      let outputs: Handed<any MLFeatureProvider>
      do {
        if #available(iOS 17.0, macOS 14.0, *) {
          outputs = try await predict(model, features)
        } else {
          outputs = try await predictBlocking(model, features, on: queue)
        }
      } catch {
        try Task.checkCancellation()
        throw MTUError.partFailed(part: part.name, phase: .run, reason: firstLine(error))
      }
      return try tensors(of: outputs.value)
    }

    func close() {
      model = nil
    }

    private func features(of inputs: [String: Tensor]) throws -> MLDictionaryFeatureProvider {
      var values: [String: Any] = [:]
      for spec in part.inputs {
        guard let tensor = inputs[spec.name], tensor.shape == spec.shape,
          tensor.elementType == spec.type
        else {
          throw MTUError.partFailed(
            part: part.name, phase: .run,
            reason: "input \(spec.name) is not \(spec.type.rawValue) \(spec.shape)")
        }
        values[spec.name] = MLFeatureValue(multiArray: try multiArray(tensor))
      }
      return try MLDictionaryFeatureProvider(dictionary: values)
    }

    private func tensors(of features: any MLFeatureProvider) throws -> [String: Tensor] {
      var tensors: [String: Tensor] = [:]
      for spec in part.outputs {
        guard let array = features.featureValue(for: spec.name)?.multiArrayValue else {
          throw MTUError.partFailed(
            part: part.name, phase: .run, reason: "it gave no array \(spec.name)")
        }
        do {
          tensors[spec.name] = try floats(of: array, shape: spec.shape)
        } catch {
          throw MTUError.partFailed(
            part: part.name, phase: .run, reason: "output \(spec.name): \(firstLine(error))")
        }
      }
      return tensors
    }
  }

  /// Asks a model by its asynchronous method, outside of any actor.
  @available(iOS 17.0, macOS 14.0, *)
  private func predict(
    _ model: Handed<MLModel>, _ features: Handed<MLDictionaryFeatureProvider>
  ) async throws -> Handed<any MLFeatureProvider> {
    Handed(try await model.value.prediction(from: features.value, options: MLPredictionOptions()))
  }

  /// Asks a model by its blocking method, on a queue, so that no thread of Swift's pool waits.
  func predictBlocking(
    _ model: Handed<MLModel>, _ features: Handed<MLDictionaryFeatureProvider>,
    on queue: DispatchQueue
  ) async throws -> Handed<any MLFeatureProvider> {
    try await withCheckedThrowingContinuation { continuation in
      queue.async {
        continuation.resume(
          with: Result {
            Handed(try model.value.prediction(from: features.value, options: MLPredictionOptions()))
          })
      }
    }
  }
#endif
