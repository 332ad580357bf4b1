/// Step 5: as long as two neighbours are a pair, the pair of the lowest rank becomes one, the
/// leftmost of equals. In n · log n steps, as a prompt of somebody else's may be one long word.
struct Merging {
  /// Two neighbours, by the place of the left one, as they were when they were found.
  private struct Candidate {
    let rank: Int
    let at: Int
    let pair: TokenizerFile.Pair

    func comesBefore(_ other: Candidate) -> Bool {
      (rank, at) < (other.rank, other.at)
    }
  }

  private let merges: [TokenizerFile.Pair: TokenizerFile.Merge]
  /// The id at each place; nil where it went into one on the left.
  private var ids: [Int32?]
  private var before: [Int]
  private var after: [Int]
  private var heap: [Candidate] = []

  init(_ ids: [Int32], _ merges: [TokenizerFile.Pair: TokenizerFile.Merge]) {
    self.merges = merges
    self.ids = ids
    before = Array(-1..<ids.count - 1)
    after = Array(1...max(1, ids.count))
    for at in ids.indices { look(at) }
    while let best = pop() { join(best) }
  }

  /// Place and id of each token that is left, in order.
  var remaining: [(at: Int, id: Int32)] {
    ids.enumerated().compactMap { at, id in id.map { (at, $0) } }
  }

  /// Keeps the pair of a place and its right neighbour, where they are one.
  private mutating func look(_ at: Int) {
    guard at >= 0, after[at] < ids.count, let left = ids[at], let right = ids[after[at]] else {
      return
    }
    let pair = TokenizerFile.Pair(left: left, right: right)
    if let merge = merges[pair] { push(Candidate(rank: merge.rank, at: at, pair: pair)) }
  }

  private mutating func join(_ candidate: Candidate) {
    let at = candidate.at
    let next = after[at]
    guard next < ids.count, ids[at] == candidate.pair.left, ids[next] == candidate.pair.right,
      let merge = merges[candidate.pair]
    else { return }  // one of them has changed since
    ids[at] = merge.id
    ids[next] = nil
    after[at] = after[next]
    if after[at] < ids.count { before[after[at]] = at }
    look(before[at])
    look(at)
  }

  // ---------------------------------------------------------------------------------- the heap

  private mutating func push(_ candidate: Candidate) {
    heap.append(candidate)
    var at = heap.count - 1
    while at > 0, heap[at].comesBefore(heap[(at - 1) / 2]) {
      heap.swapAt(at, (at - 1) / 2)
      at = (at - 1) / 2
    }
  }

  private mutating func pop() -> Candidate? {
    guard let first = heap.first else { return nil }
    heap.swapAt(0, heap.count - 1)
    heap.removeLast()
    var at = 0
    while true {
      var least = at
      for child in [2 * at + 1, 2 * at + 2] where child < heap.count {
        if heap[child].comesBefore(heap[least]) { least = child }
      }
      if least == at { return first }
      heap.swapAt(at, least)
      at = least
    }
  }
}
