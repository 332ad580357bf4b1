import Foundation
import MTUCore

/// The bundle of `runtime/testdata` as a Core ML bundle of the stub: the same flow, files and shapes,
/// and parts that compute by formula.
enum CoreMLBundle {
  static let testdata = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("../../../testdata/edit-onnx-int8").standardizedFileURL

  /// Writes it below `folder`; `outputs` is put into each output of the stub.
  static func make(in folder: URL, outputs: String = #""padding":3,"type":"float16""#) throws -> URL
  {
    let bundle = folder.appendingPathComponent("edit-coreml")
    let manager = FileManager.default
    try manager.createDirectory(at: bundle, withIntermediateDirectories: true)
    for name in ["tokenizer", "constants.safetensors", "goldens.safetensors"] {
      try manager.copyItem(
        at: testdata.appendingPathComponent(name), to: bundle.appendingPathComponent(name))
    }
    let data = try Data(contentsOf: testdata.appendingPathComponent("manifest.json"))
    var manifest = try object(JSONSerialization.jsonObject(with: data))
    manifest["target"] = "coreml"
    manifest["options"] = ["compute_unit": "CPU_AND_NE", "deployment_target": "iOS17"]
    manifest["parts"] = try list(manifest["parts"]).map { part in
      try rewritten(part, bundle, outputs)
    }
    manifest["files"] = try list(manifest["files"]).filter { file in
      manager.fileExists(atPath: bundle.appendingPathComponent(file["path"] as? String ?? "").path)
    }
    try JSONSerialization.data(withJSONObject: manifest)
      .write(to: bundle.appendingPathComponent("manifest.json"))
    return bundle
  }

  private static func rewritten(
    _ part: [String: Any], _ bundle: URL, _ outputs: String
  ) throws -> [String: Any] {
    var part = part
    let name = part["name"] as? String ?? ""
    let path = "\(name).mlpackage"
    let package = bundle.appendingPathComponent(path)
    try FileManager.default.createDirectory(at: package, withIntermediateDirectories: true)
    let inputs = try list(part["inputs"]).map { input in
      #"{"name":"\#(input["name"] ?? "")","shape":\#(input["shape"] ?? ""),"weight":0.01,"#
        + #""type":"\#(input["dtype"] ?? "")"}"#
    }
    let results = try list(part["outputs"]).map { output in
      #"{"name":"\#(output["name"] ?? "")","shape":\#(output["shape"] ?? ""),\#(outputs)}"#
    }
    let function =
      #"{"inputs":[\#(inputs.joined(separator: ","))],"outputs":[\#(results.joined(separator: ","))]}"#
    let stub = Data(#"{"functions":{"main":\#(function)},"compileSeconds":0.0}"#.utf8)
    try stub.write(to: package.appendingPathComponent("stub.json"))
    part["path"] = path
    part["bytes"] = stub.count
    part["sha256"] = try artefactSHA256(package)
    part["entries"] = (part["entries"] as? [String: Any] ?? [:]).mapValues { _ in "main" }
    return part
  }

  private static func object(_ value: Any) throws -> [String: Any] {
    guard let object = value as? [String: Any] else { throw Broken(reason: "no object") }
    return object
  }

  private static func list(_ value: Any?) throws -> [[String: Any]] {
    guard let list = value as? [[String: Any]] else { throw Broken(reason: "no list") }
    return list
  }
}
