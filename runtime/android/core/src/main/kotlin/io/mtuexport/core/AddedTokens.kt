package io.mtuexport.core

/**
 * The added tokens of one round of step 1 of "Text".
 *
 * @param contentOf What the round looks for, from a token's content.
 */
internal class AddedTokens(tokens: List<AddedToken>, contentOf: (String) -> String) {
    /** An added token, or the text between two of them. */
    class Piece(val begin: Int, val id: Int, val between: AlignedText?)

    private class Candidate(val content: String, val token: AddedToken)

    /** By their first letter, the longest first; of those of one content the first alone. */
    private val candidates: Map<Char, List<Candidate>> = tokens
        .map { Candidate(contentOf(it.content), it) }
        .filter { it.content.isNotEmpty() }
        .distinctBy { it.content }
        .sortedByDescending { it.content.length }
        .groupBy { it.content[0] }

    /** The tokens of a text and the pieces between them, in order. */
    fun split(whole: AlignedText): Sequence<Piece> = sequence {
        val text = whole.text
        var done = 0
        var at = 0
        while (at < text.length) {
            val match = candidates[text[at]]?.firstOrNull { text.startsWith(it.content, at) }
            if (match == null) {
                at += 1
                continue
            }
            var begin = at
            var end = at + match.content.length
            at = end
            if (match.token.isSingleWord && isTouched(text, begin, end)) continue
            if (match.token.takesSpaceBefore) {
                while (begin > done && isWhiteSpace(text[begin - 1].code)) begin -= 1
            }
            if (match.token.takesSpaceBehind) {
                while (end < text.length && isWhiteSpace(text[end].code)) end += 1
            }
            if (begin > done) yield(between(whole, done, begin))
            yield(Piece(whole.begin(begin), match.token.id, null))
            done = end
        }
        if (done < text.length) yield(between(whole, done, text.length))
    }

    private fun between(whole: AlignedText, from: Int, to: Int) =
        Piece(whole.begin(from), -1, whole.slice(from, to))

    /** Whether a word character stands at either side. */
    private fun isTouched(text: String, begin: Int, end: Int): Boolean =
        begin > 0 && isWordCharacter(text.codePointBefore(begin)) ||
            end < text.length && isWordCharacter(text.codePointAt(end))
}
