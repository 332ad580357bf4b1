package io.mtuexport.core

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction
import java.util.Collections

/** An object of JSON, its keys in the order of the file. */
internal typealias JsonObject = Map<String, Any?>

/**
 * JSON as rule 1 of the contract wants it: UTF-8, no key twice, finite numbers, whole surrogate
 * pairs, at most 64 objects and lists inside one another.
 *
 * Values are [Map] (in the order of the file), [List], [String], [Double], [Boolean] and null, so
 * that `1` and `1.0` are equal and `true` is no number.
 */
internal object Json {
    private const val DEEPEST = 64

    /** The value that [bytes] hold; [what] names them in the [Damaged] that is thrown otherwise. */
    fun parse(bytes: ByteArray, what: String): Any? = Parser(decoded(bytes, what), what).document()

    /** The object that [bytes] hold. */
    fun parseObject(bytes: ByteArray, what: String): JsonObject {
        val value = parse(bytes, what)
        refuseUnless(value is Map<*, *>, what) { "it does not hold an object" }
        return value.asObject()
    }

    /** JSON of what [parse] gives and of any [Number]; in ASCII, without white space. */
    fun write(value: Any?): String = StringBuilder().also { append(it, value) }.toString()

    private fun decoded(bytes: ByteArray, what: String): String {
        val decoder = Charsets.UTF_8.newDecoder()
            .onMalformedInput(CodingErrorAction.REPORT)
            .onUnmappableCharacter(CodingErrorAction.REPORT)
        try {
            return decoder.decode(ByteBuffer.wrap(bytes)).toString()
        } catch (error: CharacterCodingException) {
            throw Damaged(what, "it is not UTF-8", error)
        }
    }

    private fun append(out: StringBuilder, value: Any?) {
        when (value) {
            null, is Boolean -> out.append(value)
            is String -> appendString(out, value)
            is Number -> appendNumber(out, value)
            is List<*> -> value.joinTo(out, ",", "[", "]") { write(it) }
            is Map<*, *> -> value.entries.joinTo(out, ",", "{", "}") { (key, inner) ->
                "${write(key as String)}:${write(inner)}"
            }
            else -> throw IllegalArgumentException("${value.javaClass} is not of JSON")
        }
    }

    private fun appendNumber(out: StringBuilder, value: Number) {
        val number = value.toDouble()
        require(number.isFinite()) { "$number is not of JSON" }
        val whole = value.toLong()
        if (value !is Double && value !is Float || number == whole.toDouble()) {
            out.append(whole)
        } else {
            out.append(value)
        }
    }

    private fun appendString(out: StringBuilder, text: String) {
        out.append('"')
        for (letter in text) {
            when (letter) {
                '"', '\\' -> out.append('\\').append(letter)
                in ' '..'~' -> out.append(letter)
                else -> out.append("\\u").append(letter.code.toString(16).padStart(4, '0'))
            }
        }
        out.append('"')
    }

    private class Parser(private val text: String, private val what: String) {
        private var at = 0

        fun document(): Any? {
            val value = value(depth = 1)
            skipSpace()
            refuseUnless(at == text.length, what) { "more than one value" }
            return value
        }

        private fun value(depth: Int): Any? {
            skipSpace()
            return when (text.getOrNull(at)) {
                '{', '[' -> nested(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun nested(depth: Int): Any {
            refuseUnless(depth <= DEEPEST, what) {
                "more than $DEEPEST objects and lists inside one another"
            }
            return if (text[at++] == '{') objectOf(depth + 1) else list(depth + 1)
        }

        private fun objectOf(depth: Int): JsonObject {
            if (skips('}')) return emptyMap()
            val members = LinkedHashMap<String, Any?>(SMALL)
            do {
                skipSpace()
                refuseUnless(text.getOrNull(at) == '"', what) { "no key at character $at" }
                val key = string()
                refuseUnless(key !in members, what) { "key ${quoted(key)} is there twice" }
                refuseUnless(skips(':'), what) { "no colon at character $at" }
                members[key] = value(depth)
            } while (skips(','))
            refuseUnless(skips('}'), what) { "an object without an end at character $at" }
            // A manifest of four megabytes can hold half a million objects of one key.
            val only = members.entries.singleOrNull() ?: return members
            return Collections.singletonMap(only.key, only.value)
        }

        private fun list(depth: Int): List<Any?> {
            if (skips(']')) return emptyList()
            val items = ArrayList<Any?>(1)
            do items.add(value(depth)) while (skips(','))
            refuseUnless(skips(']'), what) { "a list without an end at character $at" }
            items.trimToSize()
            return items
        }

        private fun string(): String {
            at += 1
            val begin = at
            while (at < text.length && isPlain(text[at])) at += 1
            val plain = text.substring(begin, at)
            val string = if (text.getOrNull(at) == '"') plain else plain + restOfString()
            at += 1
            refuseUnless(isWellFormed(string), what) {
                "half a surrogate pair in ${quoted(string)}"
            }
            return string
        }

        private fun restOfString(): String {
            val rest = StringBuilder()
            while (true) {
                val letter = text.getOrNull(at)
                when {
                    letter == '"' -> return rest.toString()
                    letter == '\\' -> rest.append(escape())
                    letter != null && isPlain(letter) -> {
                        rest.append(letter)
                        at += 1
                    }
                    else -> throw Damaged(what, "a string without an end at character $at")
                }
            }
        }

        private fun isPlain(letter: Char) = letter != '"' && letter != '\\' && letter >= ' '

        private fun escape(): Char {
            val letter = text.getOrNull(at + 1)
            at += 2
            if (letter == 'u') {
                val digits = text.substring(at, minOf(at + HEX_DIGITS, text.length))
                refuseUnless(digits.length == HEX_DIGITS && digits.all(::isHex), what) {
                    "an escape without four digits at character $at"
                }
                at += HEX_DIGITS
                return digits.toInt(16).toChar()
            }
            val place = ESCAPES.indexOf(letter ?: ' ')
            refuseUnless(place >= 0, what) { "no such escape at character ${at - 2}" }
            return ESCAPED[place]
        }

        private fun isHex(digit: Char) = digit in '0'..'9' || digit in 'a'..'f' || digit in 'A'..'F'

        private fun word(word: String, value: Boolean?): Boolean? {
            refuseUnless(text.startsWith(word, at), what) { "no JSON at character $at" }
            at += word.length
            return value
        }

        private fun number(): Double {
            val begin = at
            if (text.getOrNull(at) == '-') at += 1
            if (text.getOrNull(at) == '0') at += 1 else digits(begin)
            if (text.getOrNull(at) == '.') {
                at += 1
                digits(begin)
            }
            if (text.getOrNull(at) == 'e' || text.getOrNull(at) == 'E') {
                at += 1
                if (text.getOrNull(at) == '+' || text.getOrNull(at) == '-') at += 1
                digits(begin)
            }
            val number = text.substring(begin, at)
            val value = number.toDouble()
            refuseUnless(value.isFinite(), what) { "${quoted(number)} is not finite" }
            return value
        }

        private fun digits(begin: Int) {
            val first = at
            while (at < text.length && text[at] in '0'..'9') at += 1
            refuseUnless(at > first, what) { "no JSON at character $begin" }
        }

        private fun skipSpace() {
            while (at < text.length && text[at] in SPACE) at += 1
        }

        private fun skips(letter: Char): Boolean {
            skipSpace()
            if (text.getOrNull(at) != letter) return false
            at += 1
            return true
        }
    }

    private const val SMALL = 4
    private const val SPACE = " \t\n\r"
    private const val HEX_DIGITS = 4
    private const val ESCAPES = "\"\\/bfnrt"
    private const val ESCAPED = "\"\\/\b\u000c\n\r\t"
}

/** Whether every surrogate of a text is half of a pair. */
internal fun isWellFormed(text: String): Boolean {
    var at = 0
    while (at < text.length) {
        val code = text.codePointAt(at)
        if (code in Char.MIN_SURROGATE.code..Char.MAX_SURROGATE.code) return false
        at += Character.charCount(code)
    }
    return true
}

/** An object of [Json.parse]. */
@Suppress("UNCHECKED_CAST")
internal fun Any?.asObject(): JsonObject = this as JsonObject
