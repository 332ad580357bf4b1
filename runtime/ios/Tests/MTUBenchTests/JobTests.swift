import Foundation
import MTUCore
import Testing

@testable import MTUBench

/// A job's file, and what reading it says.
@Suite struct JobTests {
  static let whole = """
    {"format":1,"engine":"coreml","options":{"compute_unit":"ALL"},"threads":0,"cpus":"all",
     "parts":{"p":{"path":"b/p.mlpackage","entry":"main",
       "inputs":[{"name":"x","shape":[1,2],"dtype":"float32"}],
       "outputs":[{"name":"y","shape":[1,2],"dtype":"float32"}]}},
     "tensors":"tensors.safetensors",
     "program":[{"op":"call","part":"p","inputs":{"x":"in"},"outputs":{"y":"out"}}],
     "expected":{"out":"want"},"load_again":true,"warmup":1,"samples":3,"cooldown_ms":0,
     "deadline_s":60}
    """

  private func refusal(_ text: String) -> String? {
    do {
      _ = try Job(Array(text.utf8), "job.json")
      return nil
    } catch {
      return firstLine(error)
    }
  }

  @Test func aWholeJobIsRead() throws {
    let job = try Job(Array(JobTests.whole.utf8), "job.json")
    #expect(job.engine == "coreml" && job.samples == 3 && job.loadAgain)
    #expect(job.parts["p"]?.inputs == [TensorSpec(name: "x", shape: [1, 2], type: .float32)])
  }

  @Test(arguments: [
    (#""format":1"#, #""format":2"#, "job.json: format is not 1"),
    (#""samples":3"#, #""samples":0"#, "job.json: samples; legal: 1 to 100000"),
    (#""samples":3"#, #""x":3"#, #"job.json: unknown key "x""#),
    (#""threads":0"#, #""threads":-1"#, "job.json: threads; legal: 0 to 1024"),
    ("b/p.mlpackage", "../p", #"job.json: part "p": "../p" leads out of the job's folder"#),
    (#""op":"call""#, #""op":"jump""#, #"job.json: program[0]: op "jump""#),
    (
      #""dtype":"float32""#, #""dtype":"float16""#,
      #"job.json: part "p": inputs: dtype; legal: float32, int32"#
    ),
    (#""load_again":true"#, #""load_again":1"#, "job.json: load_again is no truth value"),
    (#""warmup":1"#, #""library":"x""#, "job.json: library is for runners with a shell"),
    (#""shape":[1,2]"#, #""shape":[1,0]"#, #"job.json: part "p": inputs: shape"#),
  ])
  func whatIsNotLegalIsOneLine(_ old: String, _ new: String, _ says: String) {
    let text = JobTests.whole.replacingOccurrences(of: old, with: new)
    #expect(text != JobTests.whole)
    #expect(refusal(text) == says)
  }

  @Test func registersAndShapesAreCheckedBeforeARun() throws {
    let job = try Job(Array(JobTests.whole.utf8), "job.json")
    let good = Tensor(shape: [1, 2], floats: [1, 2])
    try job.check(["in": good, "want": good])
    func says(_ tensors: [String: Tensor]) -> String? {
      do { try job.check(tensors) } catch { return firstLine(error) }
      return nil
    }
    #expect(says(["want": good]) == #"program[0]: no register "in""#)
    let wide = Tensor(shape: [1, 3], floats: [1, 2, 3])
    #expect(says(["in": wide, "want": good]) == #"program[0]: input "x" is [1, 2], got [1, 3]"#)
    #expect(says(["in": good, "want": wide])?.hasPrefix("expected: ") == true)
  }
}
