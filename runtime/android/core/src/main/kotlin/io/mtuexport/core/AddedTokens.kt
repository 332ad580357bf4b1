package io.mtuexport.core

/**
 * The added tokens of one round of step 1 of "Text".
 *
 * @param contentOf What the round looks for, from a token's content.
 */
internal class AddedTokens(tokens: List<AddedToken>, contentOf: (String) -> String) {
    /** An added token, or the text between two of them. */
    class Piece(val begin: Int, val id: Int, val between: AlignedText?)

    /** By content; of several the first. */
    private val tokens: Map<String, AddedToken> =
        tokens.asReversed().associateBy { contentOf(it.content) }

    /** First letter → the lengths of contents that begin with it, the longest first. */
    private val lengths: Map<Char, List<Int>> = this.tokens.keys
        .filter { it.isNotEmpty() }
        .groupBy({ it[0] }, { it.length })
        .mapValues { it.value.distinct().sortedDescending() }

    /** The tokens of a text and the pieces between them, in order. */
    fun split(whole: AlignedText): Sequence<Piece> = sequence {
        val text = whole.text
        var done = 0
        var at = 0
        while (at < text.length) {
            val length = lengths[text[at]]?.firstOrNull { contentAt(text, at, it) in tokens }
            if (length == null) {
                at += 1
                continue
            }
            val token = tokens.getValue(text.substring(at, at + length))
            var begin = at
            var end = at + length
            at = end
            if (token.isSingleWord && isTouched(text, begin, end)) continue
            if (token.takesSpaceBefore) {
                while (begin > done && isWhiteSpace(text[begin - 1].code)) begin -= 1
            }
            if (token.takesSpaceBehind) {
                while (end < text.length && isWhiteSpace(text[end].code)) end += 1
            }
            if (begin > done) yield(between(whole, done, begin))
            yield(Piece(whole.begin(begin), token.id, null))
            done = end
        }
        if (done < text.length) yield(between(whole, done, text.length))
    }

    private fun contentAt(text: String, at: Int, length: Int): String? =
        if (at + length <= text.length) text.substring(at, at + length) else null

    private fun between(whole: AlignedText, from: Int, to: Int) =
        Piece(whole.begin(from), -1, whole.slice(from, to))

    /** Whether a word character stands at either side. */
    private fun isTouched(text: String, begin: Int, end: Int): Boolean =
        begin > 0 && isWordCharacter(text.codePointBefore(begin)) ||
            end < text.length && isWordCharacter(text.codePointAt(end))
}
