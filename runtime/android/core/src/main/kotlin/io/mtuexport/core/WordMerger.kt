package io.mtuexport.core

import java.util.PriorityQueue

/** Two tokens that are neighbours become one. */
internal class Merge(val rank: Int, val id: Int)

/**
 * Step 5 of "Text" of one word: as long as two neighbours are a pair, the pair of the lowest rank
 * is joined, the leftmost of equals.
 *
 * @param ids Of the word's letters; joined in place.
 */
internal class WordMerger(private val ids: IntArray, private val mergeOf: (Int, Int) -> Merge?) {
    private class Candidate(
        val merge: Merge,
        val at: Int,
        val left: Int,
        val right: Int,
    ) : Comparable<Candidate> {
        override fun compareTo(other: Candidate): Int =
            compareValuesBy(this, other, { it.merge.rank }, { it.at })
    }

    private val next = IntArray(ids.size) { it + 1 }
    private val previous = IntArray(ids.size) { it - 1 }
    private val queue = PriorityQueue<Candidate>()

    /** Joins what is to be joined; where the tokens that are left begin, in letters. */
    fun merge(): List<Int> {
        for (at in 0 until ids.size - 1) offer(at)
        while (true) {
            val candidate = queue.poll() ?: break
            val at = candidate.at
            val right = next[at]
            // One of the two may have been joined with its other neighbour since.
            val isThere = ids[at] == candidate.left && ids.getOrNull(right) == candidate.right
            if (!isThere) continue
            ids[at] = candidate.merge.id
            ids[right] = JOINED
            next[at] = next[right]
            if (next[at] < ids.size) previous[next[at]] = at
            if (previous[at] >= 0) offer(previous[at])
            if (next[at] < ids.size) offer(at)
        }
        return ids.indices.filter { ids[it] != JOINED }
    }

    private fun offer(at: Int) {
        val (left, right) = ids[at] to ids[next[at]]
        mergeOf(left, right)?.let { queue += Candidate(it, at, left, right) }
    }

    private companion object {
        private const val JOINED = -1
    }
}
