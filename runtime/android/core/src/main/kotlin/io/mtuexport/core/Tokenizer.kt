package io.mtuexport.core

import java.io.File
import java.io.RandomAccessFile

/** Ids of a text, [1, length], and what of the text they leave out; empty where it fits. */
internal class Encoded(val ids: Tensor.Ints, val cut: String)

/** CLIP's tokenizer from a bundle's `tokenizer.json`: "Text" of the contract. Thread-safe. */
internal class Tokenizer(json: JsonObject, private val record: TokenizerRecord, what: String) {
    private class Placed(val id: Int, val begin: Int)

    private val merges = HashMap<Long, Merge>()
    private val letters: IntArray
    private val lastLetters: IntArray
    private val rawRound: AddedTokens
    private val normalisedRound: AddedTokens
    private val expansions: Map<Int, List<Int>>

    init {
        refuseUnless(record.length in PROMPT_LENGTHS, what) {
            "${record.length} ids; legal are $PROMPT_LENGTHS"
        }
        val file = TokenizerFile.of(json, record, what)
        val ids = file.vocabulary
        file.merges.forEachIndexed { rank, (left, right) ->
            val pair = pairOf(ids.getValue(left), ids.getValue(right))
            merges[pair] = Merge(rank, ids.getValue(left + right))
        }
        letters = IntArray(BYTE_LETTERS.size) { ids.getValue("${BYTE_LETTERS[it]}") }
        lastLetters = IntArray(BYTE_LETTERS.size) { ids.getValue("${BYTE_LETTERS[it]}$WORD_END") }
        rawRound = AddedTokens(file.added.filter { !it.isNormalised }) { it }
        normalisedRound = AddedTokens(file.added.filter { it.isNormalised }) {
            AlignedText.of(it).normalised().text
        }
        expansions = expansionsOf(file.added)
    }

    /**
     * The ids of a text: start, ids, end, padding.
     *
     * @throws MtuException.RequestRefused for half a surrogate pair.
     */
    fun encode(text: String): Encoded {
        if (!isWellFormed(text)) {
            throw MtuException.RequestRefused("the text holds half a surrogate pair")
        }
        val room = record.length - 2
        val placed = ids(text)
            .flatMap { each ->
                val several = expansions[each.id] ?: listOf(each.id)
                several.asSequence().map { Placed(it, each.begin) }
            }
            .take(room + 1)
            .toList()
        val data = IntArray(record.length) { record.pad.toInt() }
        data[0] = record.bos.toInt()
        val kept = placed.take(room)
        kept.forEachIndexed { index, each -> data[1 + index] = each.id }
        data[1 + kept.size] = record.eos.toInt()
        val cut = placed.getOrNull(room)?.let { text.substring(it.begin) }.orEmpty()
        return Encoded(Tensor.Ints(intArrayOf(1, record.length), data), cut)
    }

    private fun ids(text: String): Sequence<Placed> = sequence {
        for (outer in rawRound.split(AlignedText.of(text))) {
            if (outer.between == null) {
                yield(Placed(outer.id, outer.begin))
                continue
            }
            for (inner in normalisedRound.split(outer.between.normalised())) {
                if (inner.between == null) {
                    yield(Placed(inner.id, inner.begin))
                } else {
                    words(inner.between)
                }
            }
        }
    }

    /** Steps 3 to 5 of a piece between added tokens. */
    private suspend fun SequenceScope<Placed>.words(piece: AlignedText) {
        val text = piece.text
        var at = 0
        while (at < text.length) {
            val end = endOfWord(text, at)
            if (CAPITALS.any { text.startsWith(it, at) }) {
                word(piece, at, at + 2)
                word(piece, at + 2, end - 2)
                word(piece, end - 2, end)
            } else if (end > at) {
                word(piece, at, end)
            }
            at = maxOf(end, at + 1)
        }
    }

    /** The ids of one word: those of its UTF-8 bytes, merged. */
    private suspend fun SequenceScope<Placed>.word(piece: AlignedText, from: Int, to: Int) {
        val bytes = piece.text.substring(from, to).toByteArray()
        val ids = IntArray(bytes.size) { index ->
            (if (index == bytes.lastIndex) lastLetters else letters)[bytes[index].toInt() and 255]
        }
        var at = from - 1
        val begins = IntArray(bytes.size) { index ->
            val begins = bytes[index].toInt() and CONTINUES != CONTINUATION
            if (begins) at = nextLetter(piece.text, at, from)
            piece.begin(at)
        }
        val tokens = WordMerger(ids) { left, right -> merges[pairOf(left, right)] }.merge()
        for (index in tokens) yield(Placed(ids[index], begins[index]))
    }

    companion object {
        private const val LARGEST_FILE = 32_000_000
        private const val CONTINUES = 0xc0 // the bits that tell a byte within a code point of UTF-8
        private const val CONTINUATION = 0x80
        private val CAPITALS = listOf("<|startoftext|>", "<|endoftext|>")
        private val FIXED = CAPITALS + listOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

        /** The tokenizer of a folder of a bundle; throws [Damaged] for one that is not CLIP's. */
        fun open(folder: File, record: TokenizerRecord): Tokenizer {
            val what = "${record.path}/tokenizer.json"
            RandomAccessFile(File(folder, what), "r").use { opened ->
                val bytes = opened.readWhole(LARGEST_FILE, what)
                return Tokenizer(Json.parseObject(bytes, what), record, what)
            }
        }

        /** Where the code point after that at a place begins; [first] where the place is before. */
        private fun nextLetter(text: String, at: Int, first: Int): Int =
            if (at < first) first else at + Character.charCount(text.codePointAt(at))

        private fun pairOf(left: Int, right: Int): Long = left.toLong() shl 32 or right.toLong()

        /** Where the word that begins at a place ends; the same place where there is none. */
        private fun endOfWord(text: String, at: Int): Int {
            val fixed = FIXED.firstOrNull { text.startsWith(it, at) }
            if (fixed != null) return at + fixed.length
            val first = text.codePointAt(at)
            return when {
                isLetter(first) -> endOfRun(text, at, ::isLetter)
                isNumber(first) -> at + Character.charCount(first)
                else -> endOfRun(text, at) { it != ' '.code && !isLetter(it) && !isNumber(it) }
            }
        }

        private inline fun endOfRun(text: String, from: Int, isInside: (Int) -> Boolean): Int {
            var at = from
            while (at < text.length) {
                val code = text.codePointAt(at)
                if (!isInside(code)) break
                at += Character.charCount(code)
            }
            return at
        }

        /** Added tokens that stand for several: T, T_1, T_2, and so on, by the id of T. */
        private fun expansionsOf(added: List<AddedToken>): Map<Int, List<Int>> {
            val ids = added.associate { it.content to it.id }
            fun following(content: String): List<Int> =
                generateSequence(1) { it + 1 }.map { ids["${content}_$it"] }
                    .takeWhile { it != null }.filterNotNull().toList()
            return ids.entries.associate { (content, id) -> id to listOf(id) + following(content) }
                .filterValues { it.size > 1 }
        }
    }
}
