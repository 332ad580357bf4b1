package io.mtuexport.core

import io.mtuexport.core.TestBundles.items
import io.mtuexport.core.TestBundles.members
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows

internal class TokenizerTest {
    private val record = ModelBundle.open(TestBundles.original).manifest.tokenizers.single()
    private val vectors = TestBundles.read("tokens.json").asObject()

    private fun document(): MutableMap<String, Any?> {
        val file = TestBundles.original.resolve("tokenizer/tokenizer.json")
        return TestBundles.mutable(Json.parse(file.readBytes(), file.name)).members()
    }

    private fun tokenizer(
        change: (MutableMap<String, Any?>) -> Unit = {},
        record: TokenizerRecord = this.record,
    ) = Tokenizer(document().also(change), record, "tokenizer.json")

    private val withAdded by lazy {
        tokenizer({ it["added_tokens"].items().addAll(vectors.list("added_tokens")) })
    }

    @TestFactory
    fun vectors(): List<DynamicTest> {
        val lists = mapOf("texts" to tokenizer(), "texts_with_added_tokens" to withAdded)
        return lists.flatMap { (list, tokenizer) ->
            assertTrue(vectors.list(list).size > 5)
            vectors.members(list).map { each ->
                dynamicTest("$list: ${quoted(each.text("text"))}") {
                    val encoded = tokenizer.encode(each.text("text"))
                    assertEquals(each.list("ids"), encoded.ids.data.map { it.toDouble() })
                    assertArrayEquals(intArrayOf(1, 77), encoded.ids.shape)
                    assertEquals(each.text("cut"), encoded.cut)
                }
            }
        }
    }

    @Test
    fun `half a surrogate pair is refused`() {
        val half = charArrayOf('\ud83d').concatToString()
        assertThrows<MtuException.RequestRefused> { tokenizer().encode("a${half}b") }
        assertEquals("", tokenizer().encode("a\ud83d\ude00b").cut)
    }

    @Test
    fun `long texts end`() {
        val long = 300_000
        val cut = tokenizer().encode("a".repeat(long)).cut
        assertTrue(cut.isNotEmpty() && cut.length < long)
        tokenizer().encode("e" + "\u0301".repeat(long))
        tokenizer().encode(" ".repeat(long) + "!".repeat(long))
        withAdded.encode("bluered ".repeat(long))
    }

    @Test
    fun `what differs from the canonical file is refused`() {
        val edits =
            listOf<Pair<List<Any>, Any?>>(
                listOf("version") to "2.0",
                listOf("later") to 1.0,
                listOf("truncation", "max_length") to 76.0,
                listOf("truncation", "later") to 1.0,
                listOf("padding", "strategy", "Fixed") to 76.0,
                listOf("padding", "pad_id") to 5.0,
                listOf("padding", "pad_token") to "x",
                listOf("normalizer", "normalizers", 1.0, "pattern", "Regex") to "(a+)+",
                listOf("pre_tokenizer", "pretokenizers", 0.0, "pattern", "Regex") to "(a+)+",
                listOf("post_processor", "sep") to listOf("<|startoftext|>", 862.0),
                listOf("post_processor", "cls") to listOf("<|endoftext|>"),
                listOf("post_processor", "cls") to 5.0,
                listOf("decoder") to null,
                listOf("model", "byte_fallback") to true,
                listOf("model", "unk_token") to 5.0,
                listOf("model", "vocab") to emptyList<Any?>(),
                listOf("model", "vocab", "later") to 0.0,
                listOf("model", "vocab", "later") to -1.0,
                listOf("model", "vocab", "later") to 2147483648.0,
                listOf("model", "vocab", "later") to "5",
                listOf("model", "vocab", "") to 5000.0,
                listOf("model", "vocab", "x".repeat(1001)) to 5000.0,
                listOf("model", "merges", 0.0) to listOf("h"),
                listOf("model", "merges", 0.0) to listOf("h", "q q q"),
                listOf("model", "merges", 0.0) to "h e",
                listOf("added_tokens", 0.0, "id") to 5.0,
                listOf("added_tokens", 0.0, "later") to 5.0,
                listOf("added_tokens", 0.0, "lstrip") to 0.0,
                listOf("added_tokens", 0.0) to null,
                listOf("added_tokens") to emptyMap<String, Any?>(),
            )
        for ((path, value) in edits) assertThrows<Damaged>("$path") {
            tokenizer({ TestBundles.set(it, path, value) })
        }
        assertThrows<Damaged> {
            tokenizer({ it["model"].members()["vocab"].members().remove("a") })
        }
        assertThrows<Damaged> { tokenizer({ it.remove("version") }) }
        assertThrows<Damaged> { tokenizer({ it["model"].members().remove("dropout") }) }
        assertThrows<Damaged> {
            tokenizer(record = TokenizerRecord(record.path, record.bos, 7, record.pad, 77))
        }
        assertThrows<Damaged> {
            tokenizer(record = TokenizerRecord(record.path, 1L shl 40, record.eos, record.pad, 77))
        }
        assertThrows<Damaged> {
            tokenizer(record = TokenizerRecord(record.path, record.bos, record.eos, record.pad, 2))
        }
    }

    @Test
    fun `of added tokens at one place the longest, of one content the first`() {
        val contents = listOf("ab", "abc", "b", "cd", "ab")
        val tokens =
            contents.mapIndexed { id, it -> AddedToken(id, it, false, false, false, false) }
        val pieces = AddedTokens(tokens) { it }.split(AlignedText.of("xababcdabcb")).toList()
        assertEquals(listOf(-1, 0, 1, -1, 1, 2), pieces.map { it.id })
        assertEquals(listOf("x", "d"), pieces.mapNotNull { it.between?.text })
        assertEquals(listOf(0, 1, 3, 6, 7, 10), pieces.map { it.begin })
    }

    @Test
    fun `merging by a queue is merging by search`() {
        val random = Random(1)
        repeat(300) {
            val merges = HashMap<Pair<Int, Int>, Merge>()
            for (rank in 0 until 30) merges[random.nextInt(12) to random.nextInt(12)] =
                Merge(rank, random.nextInt(12))
            val word = IntArray(random.nextInt(1, 40)) { random.nextInt(6) }
            val searched = word.toMutableList()
            while (true) {
                val pairs =
                    (0 until searched.size - 1).filter {
                        (searched[it] to searched[it + 1]) in merges
                    }
                val best =
                    pairs.minByOrNull { merges.getValue(searched[it] to searched[it + 1]).rank }
                        ?: break
                searched[best] = merges.getValue(searched[best] to searched[best + 1]).id
                searched.removeAt(best + 1)
            }
            val ids = word.copyOf()
            val left = WordMerger(ids) { one, other -> merges[one to other] }.merge()
            assertEquals(searched, left.map { ids[it] })
        }
    }

    @Test
    fun `white space and classes of Unicode are those of the contract`() {
        val spaces = (0..Character.MAX_CODE_POINT).filter(::isWhiteSpace)
        assertEquals(25, spaces.size)
        for (code in listOf(0x1c, 0x1f, 0x180e, 0x200b, 0x2060, 0xfeff)) assertTrue(code !in spaces)
        for (code in listOf('a', 'é', '1', '_', '\u0301', '\u200d').map { it.code }) assertTrue(
            isWordCharacter(code)
        )
        for (code in listOf('-', ' ', '½', '!').map { it.code }) assertTrue(!isWordCharacter(code))
    }

    @Test
    fun `text keeps where it began`() {
        val aligned = AlignedText.of("A \t\u0130e\u0301x").normalised()
        assertEquals("a i\u0307\u00e9x", aligned.text)
        assertEquals(listOf(0, 1, 3, 3, 4, 6, 7), (0..aligned.text.length).map(aligned::begin))
    }
}
