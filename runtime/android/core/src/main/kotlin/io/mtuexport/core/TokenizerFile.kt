package io.mtuexport.core

/** An entry of `added_tokens`. */
internal class AddedToken(
    val id: Int,
    val content: String,
    val isSingleWord: Boolean,
    val takesSpaceBefore: Boolean,
    val takesSpaceBehind: Boolean,
    val isNormalised: Boolean,
)

/** A canonical `tokenizer.json`: vocabulary, merges and added tokens of a CLIP tokenizer. */
internal class TokenizerFile private constructor(
    val vocabulary: Map<String, Int>,
    val merges: List<Pair<String, String>>,
    val added: List<AddedToken>,
) {
    companion object {
        private const val MOST_TOKENS = 1_000_000
        private const val LONGEST_TOKEN = 1000
        private val FLAGS = listOf("single_word", "lstrip", "rstrip", "normalized", "special")

        /**
         * The file's content, checked.
         *
         * @throws Damaged where it differs from CLIP's in more than its tokens, or from the record.
         */
        fun of(json: JsonObject, record: TokenizerRecord, what: String): TokenizerFile {
            requireCanonical(json, record, what)
            val model = json.member("model")
            val unknown = model["unk_token"]
            refuseUnless(unknown is String?, what) { "model.unk_token is no token" }
            val vocabulary = model["vocab"]
            val merges = model["merges"]
            val added = json["added_tokens"]
            refuseUnless(vocabulary is Map<*, *> && merges is List<*> && added is List<*>, what) {
                "no vocabulary"
            }
            refuseUnless(maxOf(vocabulary.size + added.size, merges.size) <= MOST_TOKENS, what) {
                "more than $MOST_TOKENS tokens"
            }
            val ids = ids(vocabulary.asObject(), what)
            val tokens = added.map { addedToken(it, what) }
            checkIds(ids, tokens, json, record, what)
            return TokenizerFile(ids, merges.map { merge(it, ids, what) }, tokens)
        }

        private fun requireCanonical(json: JsonObject, record: TokenizerRecord, what: String) {
            val canonical = canonical(json, record)
            val keys = canonical.keys + json.keys
            val differing =
                keys.firstOrNull { it !in json || it !in canonical || json[it] != canonical[it] }
            refuseUnless(differing == null, what) {
                "${quoted(differing)} is not that of CLIP's tokenizer for ${record.length} ids"
            }
        }

        /** The document with what may vary taken from [json]; null where that has none. */
        private fun canonical(json: JsonObject, record: TokenizerRecord): JsonObject {
            fun varying(member: String, key: String) = (json[member] as? Map<*, *>)?.get(key)
            val length = record.length.toDouble()
            val byteLevel = mapOf(
                "type" to "ByteLevel",
                "add_prefix_space" to false,
                "trim_offsets" to true,
                "use_regex" to true,
            )
            return mapOf(
                "version" to "1.0",
                "truncation" to mapOf(
                    "direction" to "Right",
                    "max_length" to length,
                    "strategy" to "LongestFirst",
                    "stride" to 0.0,
                ),
                "padding" to mapOf(
                    "strategy" to mapOf("Fixed" to length),
                    "direction" to "Right",
                    "pad_to_multiple_of" to null,
                    "pad_id" to record.pad.toDouble(),
                    "pad_type_id" to 0.0,
                    "pad_token" to varying("padding", "pad_token"),
                ),
                "added_tokens" to json["added_tokens"],
                "normalizer" to mapOf(
                    "type" to "Sequence",
                    "normalizers" to listOf(
                        mapOf("type" to "NFC"),
                        mapOf(
                            "type" to "Replace",
                            "pattern" to mapOf("Regex" to "\\s+"),
                            "content" to " ",
                        ),
                        mapOf("type" to "Lowercase"),
                    ),
                ),
                "pre_tokenizer" to mapOf(
                    "type" to "Sequence",
                    "pretokenizers" to listOf(
                        mapOf(
                            "type" to "Split",
                            "pattern" to mapOf("Regex" to WORDS),
                            "behavior" to "Removed",
                            "invert" to true,
                        ),
                        byteLevel,
                    ),
                ),
                "post_processor" to mapOf(
                    "type" to "RobertaProcessing",
                    "sep" to varying("post_processor", "sep"),
                    "cls" to varying("post_processor", "cls"),
                    "trim_offsets" to false,
                    "add_prefix_space" to false,
                ),
                "decoder" to byteLevel + ("add_prefix_space" to true),
                "model" to mapOf(
                    "type" to "BPE",
                    "dropout" to null,
                    "unk_token" to varying("model", "unk_token"),
                    "continuing_subword_prefix" to "",
                    "end_of_word_suffix" to "</w>",
                    "fuse_unk" to false,
                    "byte_fallback" to false,
                    "ignore_merges" to false,
                    "vocab" to varying("model", "vocab"),
                    "merges" to varying("model", "merges"),
                ),
            )
        }

        private fun ids(vocabulary: JsonObject, what: String): Map<String, Int> {
            val ids = HashMap<String, Int>(vocabulary.size * 2)
            for ((token, id) in vocabulary) ids[token] = idOf(id, token, what)
            return ids
        }

        private fun idOf(id: Any?, token: String, what: String): Int {
            val isId = id is Double && id >= 0 && id <= Int.MAX_VALUE && id % 1.0 == 0.0
            refuseUnless(isId, what) { "${quoted(token)} has an id that is none" }
            return (id as Double).toInt()
        }

        private fun addedToken(entry: Any?, what: String): AddedToken {
            val token = entry as? Map<*, *>
            val content = token?.get("content")
            val isWhole = token != null && content is String && token.size == FLAGS.size + 2 &&
                FLAGS.all { token[it] is Boolean }
            refuseUnless(isWhole, what) { "an added token is damaged" }
            fun flag(name: String) = token?.get(name) == true
            return AddedToken(
                id = idOf(token?.get("id"), content as String, what),
                content = content,
                isSingleWord = flag("single_word"),
                takesSpaceBefore = flag("lstrip"),
                takesSpaceBehind = flag("rstrip"),
                isNormalised = flag("normalized"),
            )
        }

        /** Each id has one token, each byte two tokens, and the special ones are the record's. */
        private fun checkIds(
            vocabulary: Map<String, Int>,
            added: List<AddedToken>,
            json: JsonObject,
            record: TokenizerRecord,
            what: String,
        ) {
            val ids = HashMap(vocabulary)
            for (token in added) {
                val other = ids.put(token.content, token.id)
                refuseUnless(other == null || other == token.id, what) {
                    "${quoted(token.content)} has two ids"
                }
            }
            val seen = HashSet<Int>(ids.size * 2)
            for ((token, id) in ids) {
                val length = token.codePointCount(0, token.length)
                refuseUnless(length in 1..LONGEST_TOKEN, what) { "${quoted(token)} is no token" }
                refuseUnless(seen.add(id), what) {
                    "${quoted(token)} shares id $id with another token"
                }
            }
            val bytes = BYTE_LETTERS.all { "$it" in vocabulary && "$it$WORD_END" in vocabulary }
            refuseUnless(bytes, what) { "not every text has ids" }
            val post = json.member("post_processor")
            val pad = json.member("padding").let { listOf(it["pad_token"], it["pad_id"]) }
            val special = listOf(
                Triple("bos", post["cls"], record.bos), Triple("eos", post["sep"], record.eos),
                Triple("pad", pad, record.pad),
            )
            for ((name, pair, expected) in special) {
                val (token, id) = (pair as? List<*>)?.takeIf { it.size == 2 } ?: listOf(null, null)
                val isRight =
                    token is String && id == expected.toDouble() && ids[token]?.toLong() == expected
                refuseUnless(isRight, what) { "$name is not $expected" }
            }
        }

        private fun merge(
            pair: Any?,
            vocabulary: Map<String, Int>,
            what: String,
        ): Pair<String, String> {
            val (left, right) = (pair as? List<*>)?.takeIf { it.size == 2 } ?: listOf(null, null)
            refuseUnless(left is String && right is String, what) {
                "a merge is not a pair of tokens"
            }
            val unknown = listOf(left, right, left + right).firstOrNull { it !in vocabulary }
            refuseUnless(unknown == null, what) {
                "merges name ${quoted(unknown)}, which is no token"
            }
            return left to right
        }

        private const val WORDS = "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|" +
            "[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"
    }
}

internal const val WORD_END = "</w>"

/** A letter for every byte: those that print stand for themselves, the others from U+0100 on. */
internal val BYTE_LETTERS: CharArray = run {
    var next = 256
    CharArray(256) { byte ->
        val prints = byte in 0x21..0x7e || byte in 0xa1..0xac || byte >= 0xae
        if (prints) byte.toChar() else (next++).toChar()
    }
}
