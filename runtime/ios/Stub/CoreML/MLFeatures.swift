import Foundation

// objc: MLFeatureValue
/// As Apple documents it.
public class MLFeatureValue {
  private let array: MLMultiArray?

  // objc: +[MLFeatureValue featureValueWithMultiArray:]
  public init(multiArray value: MLMultiArray) {
    array = value
  }

  // objc: -[MLFeatureValue multiArrayValue]
  public var multiArrayValue: MLMultiArray? { array }
}

// objc: MLFeatureProvider
/// As Apple documents it.
public protocol MLFeatureProvider: AnyObject {
  // objc: -[MLFeatureProvider featureNames]
  var featureNames: Set<String> { get }

  // objc: -[MLFeatureProvider featureValueForName:]
  func featureValue(for featureName: String) -> MLFeatureValue?
}

// objc: MLDictionaryFeatureProvider
/// As Apple documents it.
public class MLDictionaryFeatureProvider: MLFeatureProvider {
  private let values: [String: MLFeatureValue]

  // objc: -[MLDictionaryFeatureProvider initWithDictionary:error:]
  public init(dictionary: [String: Any]) throws {
    values = try dictionary.mapValues { value in
      if let value = value as? MLFeatureValue { return value }
      throw StubError("a value that is no feature")
    }
  }

  // objc: -[MLFeatureProvider featureNames]
  public var featureNames: Set<String> { Set(values.keys) }

  // objc: -[MLFeatureProvider featureValueForName:]
  public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}
