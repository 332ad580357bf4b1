import Foundation
import MTUCore
import Testing

@testable import MTUBench

/// The arithmetic of programs, as the runner's page has it.
@Suite struct ProgramTests {
  private func after(_ step: Job.Step, _ registers: [String: Tensor]) async throws -> Tensor {
    var run = ProgramRun(registers: registers)
    try await run.run([step], [:])
    return try run.register("out")
  }

  private let a = Tensor(shape: [2, 2], floats: [1, 2, 3, 4])
  private let b = Tensor(shape: [2, 2], floats: [0.1, 0.2, 0.3, 0.4])

  @Test func sumsAreOfDoubles() async throws {
    let step = Job.Step.sum(terms: [(1, "a"), (-1, "a"), (1, "b")], out: "out")
    #expect(try await after(step, ["a": a, "b": b]) == b)
    let large = Tensor(shape: [1], floats: [1e8])
    let small = Tensor(shape: [1], floats: [1])
    let kept = Job.Step.sum(terms: [(1, "l"), (1, "s"), (-1, "l")], out: "out")
    #expect(try await after(kept, ["l": large, "s": small]).floats == [1])
  }

  @Test func productsAndQuotientsAreOfFloats() async throws {
    let third = Job.Step.divide(by: 3, register: "a", out: "out")
    #expect(try await after(third, ["a": a]).floats == a.floats.map { $0 / 3 })
    let tenth = Job.Step.scale(by: 0.1, register: "a", out: "out")
    #expect(try await after(tenth, ["a": a]).floats == a.floats.map { $0 * Float(0.1) })
  }

  @Test func joiningAndCutting() async throws {
    let rows = Job.Step.concat(axis: 0, registers: ["a", "b"], out: "out")
    #expect(try await after(rows, ["a": a, "b": b]).shape == [4, 2])
    let columns = Job.Step.concat(axis: 1, registers: ["a", "b"], out: "out")
    #expect(try await after(columns, ["a": a, "b": b]).floats == [1, 2, 0.1, 0.2, 3, 4, 0.3, 0.4])
    let entry = Job.Step.slice(begin: 1, register: "a", out: "out")
    #expect(try await after(entry, ["a": a]) == Tensor(shape: [1, 2], floats: [3, 4]))
  }
}
