package io.mtuexport.cli

import java.math.BigDecimal
import java.math.MathContext
import java.util.Locale

// Words of lines, as `mtu-export` writes them.

private const val LONGEST_NAME = 200

/** In quotation marks, with what does not print as escapes: Python's `repr`. */
internal fun quoted(text: String): String {
    val mark = if ('\'' in text && '"' !in text) '"' else '\''
    val out = StringBuilder().append(mark)
    for (letter in text) {
        when {
            letter == '\\' || letter == mark -> out.append('\\').append(letter)
            letter == '\n' -> out.append("\\n")
            letter == '\r' -> out.append("\\r")
            letter == '\t' -> out.append("\\t")
            letter < ' ' || letter in '\u007F'..'\u00A0' ->
                out.append("\\x%02x".format(letter.code))
            else -> out.append(letter)
        }
    }
    return out.append(mark).toString()
}

/** A path in quotation marks, cut where it is very long. */
internal fun quotedPath(path: String): String = quoted(path.take(LONGEST_NAME))

/** Without what a terminal would obey. */
internal fun plain(text: String): String =
    text.map { if (Character.isISOControl(it) || it.isSurrogate()) '?' else it }.joinToString("")

/** A number as Python prints it: `0.5`, `1.0`, `nan`. */
internal fun pythonFloat(number: Double): String =
    when {
        number.isNaN() -> "nan"
        number.isInfinite() -> if (number > 0) "inf" else "-inf"
        else -> number.toString()
    }

/** A number in as few digits as it needs, at most six: Python's `:g`. */
internal fun brief(number: Double): String {
    if (number.isNaN() || number.isInfinite()) return pythonFloat(number)
    if (number == 0.0) return "0"
    val rounded = BigDecimal(number).round(MathContext(6)).stripTrailingZeros()
    val exponent = rounded.precision() - rounded.scale() - 1
    if (exponent in -4..5) return rounded.toPlainString()
    val digits = rounded.movePointLeft(exponent).stripTrailingZeros().toPlainString()
    return "%se%s%02d".format(digits, if (exponent < 0) "-" else "+", Math.abs(exponent))
}

/** A number with so many digits after the point, whatever the language of the machine. */
internal fun fixed(number: Double, digits: Int): String =
    String.format(Locale.ROOT, "%.${digits}f", number)

/** JSON of maps, lists, strings, numbers, booleans and null; indented by one as Python's is. */
internal fun json(value: Any?, indent: String = ""): String {
    val inner = "$indent "
    return when (value) {
        null,
        is Boolean,
        is Int,
        is Long -> value.toString()
        is Double -> if (value.isNaN() || value.isInfinite()) "null" else pythonFloat(value)
        is String -> jsonString(value)
        is List<*> ->
            if (value.isEmpty()) "[]"
            else value.joinToString(",\n$inner", "[\n$inner", "\n$indent]") { json(it, inner) }
        is Map<*, *> ->
            if (value.isEmpty()) "{}"
            else
                value.entries.joinToString(",\n$inner", "{\n$inner", "\n$indent}") { (key, each) ->
                    "${jsonString(key as String)}: ${json(each, inner)}"
                }
        else -> throw IllegalArgumentException("${value.javaClass} is not of JSON")
    }
}

private fun jsonString(text: String): String {
    val out = StringBuilder("\"")
    for (letter in text) {
        when {
            letter == '"' || letter == '\\' -> out.append('\\').append(letter)
            letter == '\n' -> out.append("\\n")
            letter < ' ' || letter > '~' -> out.append("\\u%04x".format(letter.code))
            else -> out.append(letter)
        }
    }
    return out.append('"').toString()
}
