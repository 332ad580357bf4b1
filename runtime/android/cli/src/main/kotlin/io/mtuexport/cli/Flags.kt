package io.mtuexport.cli

/**
 * A flag of a command.
 *
 * @property names Its spellings, the long one last.
 * @property help One line for `--help`.
 * @property metavar What the value is called there.
 */
internal class Flag(val names: List<String>, val help: String, val metavar: String? = null) {
    constructor(
        name: String,
        help: String,
        metavar: String? = null,
    ) : this(listOf(name), help, metavar)

    val takesValue: Boolean
        get() = metavar != null

    val name: String
        get() = names.last()
}

/** The words of a command line: what belongs to no flag, and the values of flags in their order. */
internal class Words(val free: List<String>, private val given: Map<Flag, List<String>>) {
    fun has(flag: Flag): Boolean = flag in given

    fun all(flag: Flag): List<String> = given[flag].orEmpty()

    fun text(flag: Flag): String? = given[flag]?.last()

    fun whole(flag: Flag, bounds: LongRange? = null): Long? =
        text(flag)?.let { text ->
            val digits =
                WHOLE.matchEntire(text.trim())?.groupValues?.get(1)
                    ?: throw Refusal(notA(flag, "integer"))
            val number =
                digits.replace("_", "").toLongOrNull()
                    ?: throw Refusal(outside(flag, bounds ?: LARGEST, text))
            if (bounds != null && number !in bounds) throw Refusal(outside(flag, bounds, text))
            number
        }

    fun number(flag: Flag, least: Int, most: Int, unit: String = ""): Double? =
        text(flag)?.let { text ->
            val number = decimal(text) ?: throw Refusal(notA(flag, "number"))
            if (!(number >= least && number <= most)) {
                throw Refusal(
                    "${flag.name} must be from $least to $most$unit, got ${pythonFloat(number)}"
                )
            }
            number
        }

    private fun outside(flag: Flag, bounds: LongRange, text: String) =
        "${flag.name} must be from ${bounds.first} to ${bounds.last}, got ${text.trim()}"

    private fun notA(flag: Flag, kind: String): String {
        val names = flag.names.joinToString(" / ") { "'$it'" }
        val article = if (kind.startsWith("i")) "an" else "a"
        return "Invalid value for $names: Input should be a valid $kind, " +
            "unable to parse string as $article $kind"
    }

    companion object {
        private val WHOLE = Regex("([+-]?[0-9]+(?:_[0-9]+)*)(?:\\.0*)?")
        private val LARGEST = Int.MIN_VALUE.toLong()..Int.MAX_VALUE

        /**
         * Takes a command line apart. Flags and other words may be mixed; `--` ends the flags; of a
         * flag given twice the last value counts, where the command does not ask for all of them.
         */
        fun of(line: List<String>, flags: List<Flag>): Words {
            val byName = flags.flatMap { flag -> flag.names.map { it to flag } }.toMap()
            val free = ArrayList<String>()
            val given = LinkedHashMap<Flag, MutableList<String>>()
            val words = line.iterator()
            while (words.hasNext()) {
                val word = words.next()
                if (word == "--") {
                    words.forEachRemaining(free::add)
                } else if (word.length < 2 || word[0] != '-') {
                    free += word
                } else {
                    for (part in split(word, byName)) {
                        val value =
                            part.attached
                                ?: when {
                                    !part.flag.takesValue -> ""
                                    words.hasNext() -> words.next()
                                    else ->
                                        throw Refusal("Option '${part.name}' requires an argument.")
                                }
                        given.getOrPut(part.flag, ::ArrayList) += value
                    }
                }
            }
            return Words(free, given)
        }

        /** A flag as it was spelled, and the value that is part of the same word. */
        private class Spelled(val flag: Flag, val name: String, val attached: String?)

        /** The flags of a word: several where they are short, as in `-vo FILE`. */
        private fun split(word: String, byName: Map<String, Flag>): List<Spelled> {
            byName[word]?.let {
                return listOf(Spelled(it, word, null))
            }
            if (!word.startsWith("--")) return splitShort(word, byName)
            val name = word.substringBefore('=')
            val flag = byName[name] ?: throw Refusal("No such option: $name")
            if (!flag.takesValue) throw Refusal("Option '$name' does not take a value.")
            return listOf(Spelled(flag, name, word.drop(name.length + 1)))
        }

        private fun splitShort(word: String, byName: Map<String, Flag>): List<Spelled> {
            val flags = ArrayList<Spelled>()
            for (at in 1 until word.length) {
                val name = "-${word[at]}"
                val flag = byName[name] ?: throw Refusal("No such option: $name")
                val rest = word.drop(at + 1).ifEmpty { null }
                flags += Spelled(flag, name, rest.takeIf { flag.takesValue })
                if (flag.takesValue) break
            }
            return flags
        }
    }
}

/** A number as Python's `float` reads it; null where it is none. */
internal fun decimal(text: String): Double? {
    val word = text.trim().replace(BETWEEN_DIGITS, "")
    val special = word.trimStart('+', '-').lowercase()
    return when {
        DECIMAL.matches(word) -> word.toDouble()
        word.length - special.length > 1 -> null
        special == "nan" -> Double.NaN
        special == "inf" || special == "infinity" ->
            if (word[0] == '-') Double.NEGATIVE_INFINITY else Double.POSITIVE_INFINITY
        else -> null
    }
}

private val DECIMAL = Regex("[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?")
private val BETWEEN_DIGITS = Regex("(?<=[0-9])_(?=[0-9])")
