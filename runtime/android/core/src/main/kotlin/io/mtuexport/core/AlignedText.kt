package io.mtuexport.core

import java.text.Normalizer
import java.util.Locale

/** Text whose every UTF-16 unit knows where it began in the raw text; step 2 of "Text". */
internal class AlignedText private constructor(
    val text: String,
    /** Of each unit, and at last where the raw text ends. */
    private val begins: IntArray,
) {
    fun begin(at: Int): Int = begins[at]

    fun slice(from: Int, to: Int) =
        AlignedText(text.substring(from, to), begins.copyOfRange(from, to + 1))

    /** NFC, then each run of white space one space, then each code point lower-cased by itself. */
    fun normalised(): AlignedText {
        val composed = if (Normalizer.isNormalized(text, Normalizer.Form.NFC)) this else composed()
        val result = Builder(composed.text.length)
        var wasSpace = false
        var at = 0
        while (at < composed.text.length) {
            val code = composed.text.codePointAt(at)
            val isSpace = isWhiteSpace(code)
            val lower = if (isSpace) " " else String(Character.toChars(code)).lowercase(Locale.ROOT)
            if (!isSpace || !wasSpace) result.append(lower, composed.begins[at])
            wasSpace = isSpace
            at += Character.charCount(code)
        }
        return result.ending(composed.begins[at])
    }

    /** NFC, a piece at a time: a piece ends where what follows neither joins it nor is a mark. */
    private fun composed(): AlignedText {
        val result = Builder(text.length)
        var at = 0
        while (at < text.length) {
            val starts = ArrayList<Int>() // of the code points of the piece
            var end = at
            do {
                starts += end
                end += Character.charCount(text.codePointAt(end))
            } while (end < text.length && joins(text.codePointAt(end)))
            appendComposed(result, text.substring(at, end), starts)
            at = end
        }
        return result.ending(begins[at])
    }

    /** The first code point comes from the piece's first, the others from its last ones. */
    private fun appendComposed(result: Builder, piece: String, starts: List<Int>) {
        val composed = Normalizer.normalize(piece, Normalizer.Form.NFC)
        val count = composed.codePointCount(0, composed.length)
        var at = 0
        for (index in 0 until count) {
            val length = Character.charCount(composed.codePointAt(at))
            val from = if (index == 0) 0 else maxOf(0, starts.size - count + index)
            result.append(composed.substring(at, at + length), begins[starts[from]])
            at += length
        }
    }

    private class Builder(capacity: Int) {
        private val text = StringBuilder(capacity)
        private var begins = IntArray(capacity + 1)

        fun append(letters: String, begin: Int) {
            reserve(text.length + letters.length + 1)
            begins.fill(begin, text.length, text.length + letters.length)
            text.append(letters)
        }

        fun ending(begin: Int): AlignedText {
            reserve(text.length + 1)
            begins[text.length] = begin
            return AlignedText(text.toString(), begins.copyOf(text.length + 1))
        }

        private fun reserve(size: Int) {
            if (size > begins.size) begins = begins.copyOf(2 * size)
        }
    }

    companion object {
        /** Raw text. */
        fun of(text: String) = AlignedText(text, IntArray(text.length + 1) { it })

        private fun joins(code: Int) = isMark(code) || code in 0x1160..0x11ff
    }
}

/** Unicode's White_Space; what `trim` and `\s` take differs. */
internal fun isWhiteSpace(code: Int): Boolean = when (code) {
    in 0x09..0x0d, 0x20, 0x85, 0xa0, 0x1680, in 0x2000..0x200a -> true
    0x2028, 0x2029, 0x202f, 0x205f, 0x3000 -> true
    else -> false
}

/** Unicode's M. */
internal fun isMark(code: Int): Boolean = when (Character.getType(code).toByte()) {
    Character.NON_SPACING_MARK, Character.COMBINING_SPACING_MARK, Character.ENCLOSING_MARK -> true
    else -> false
}

/** Unicode's L. */
internal fun isLetter(code: Int): Boolean = Character.isLetter(code)

/** Unicode's N. */
internal fun isNumber(code: Int): Boolean = when (Character.getType(code).toByte()) {
    Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
    else -> false
}

/** A word character: Alphabetic, M, Nd, Pc or Join_Control. */
internal fun isWordCharacter(code: Int): Boolean {
    val type = Character.getType(code).toByte()
    return Character.isAlphabetic(code) || isMark(code) || type == Character.DECIMAL_DIGIT_NUMBER ||
        type == Character.CONNECTOR_PUNCTUATION || code == 0x200c || code == 0x200d
}
