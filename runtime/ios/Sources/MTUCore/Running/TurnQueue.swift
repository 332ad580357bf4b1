/// One at a time, in the order of asking. An actor alone does not do it: while one of its methods
/// awaits, it serves others.
actor TurnQueue {
  private var isBusy = false
  private var waiting: [(number: Int, turn: CheckedContinuation<Void, any Error>)] = []
  private var next = 0

  /// Waits for a turn, which `leave` ends. Throws `CancellationError` where the task is cancelled
  /// before.
  func enter() async throws {
    try Task.checkCancellation()
    guard isBusy else {
      isBusy = true
      return
    }
    let number = next
    next += 1
    try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (turn: CheckedContinuation<Void, any Error>) in
        if Task.isCancelled {
          turn.resume(throwing: CancellationError())
        } else {
          waiting.append((number, turn))
        }
      }
    } onCancel: {
      Task { await self.giveUp(number) }
    }
  }

  func leave() {
    if waiting.isEmpty {
      isBusy = false
    } else {
      waiting.removeFirst().turn.resume()
    }
  }

  private func giveUp(_ number: Int) {
    guard let index = waiting.firstIndex(where: { $0.number == number }) else { return }
    waiting.remove(at: index).turn.resume(throwing: CancellationError())
  }
}
