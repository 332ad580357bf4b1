package io.mtuexport.core

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows

internal class SchemaTest {
    private fun parse(text: String): Any? = Json.parse(text.toByteArray(), "schema")

    private fun schema(text: String) = Schema(parse(text).asObject())

    private class Keyword(val schema: String, val legal: List<String>, val refused: List<String>)

    private val keywords =
        listOf(
            Keyword(
                """{"type":"integer"}""",
                listOf("1", "24.0", "-0.0", "1e3"),
                listOf("1.5", "true", "\"1\"", "null"),
            ),
            Keyword("""{"type":"number"}""", listOf("1", "1.5"), listOf("true", "null", "[]")),
            Keyword("""{"type":"boolean"}""", listOf("true", "false"), listOf("0", "1")),
            Keyword("""{"type":"null"}""", listOf("null"), listOf("0", "\"\"")),
            Keyword("""{"type":"object"}""", listOf("{}"), listOf("[]")),
            Keyword("""{"type":"array"}""", listOf("[]"), listOf("{}")),
            Keyword("""{"const":"a"}""", listOf("\"a\""), listOf("\"b\"", "1")),
            Keyword("""{"enum":["a","b"]}""", listOf("\"a\"", "\"b\""), listOf("\"c\"", "1")),
            Keyword(
                """{"minimum":1,"maximum":2}""",
                listOf("1", "2.0", "\"x\""),
                listOf("0.9", "2.1"),
            ),
            Keyword("""{"exclusiveMinimum":0}""", listOf("1e-300"), listOf("0", "-1")),
            Keyword(
                """{"minLength":1,"maxLength":2}""",
                listOf("\"a\"", "\"😀😀\""),
                listOf("\"\"", "\"abc\""),
            ),
            Keyword(
                """{"pattern":"^[a-z]+${'$'}"}""",
                listOf("\"a\""),
                listOf("\"a\\n\"", "\"A\"", "\"\"", "\" a\""),
            ),
            Keyword(
                """{"minItems":1,"maxItems":2}""",
                listOf("[1]", "[1,2]"),
                listOf("[]", "[1,2,3]"),
            ),
            Keyword("""{"items":{"type":"null"}}""", listOf("[]", "[null]"), listOf("[null,1]")),
            Keyword(
                """{"minProperties":1,"maxProperties":1}""",
                listOf("""{"a":1}"""),
                listOf("{}", """{"a":1,"b":2}"""),
            ),
            Keyword("""{"required":["a"]}""", listOf("""{"a":null}"""), listOf("{}")),
            Keyword(
                """{"propertyNames":{"maxLength":1}}""",
                listOf("""{"a":1}"""),
                listOf("""{"ab":1}"""),
            ),
            Keyword(
                """{"properties":{"a":{"type":"null"}}}""",
                listOf("""{"a":null,"b":1}"""),
                listOf("""{"a":1}"""),
            ),
            Keyword(
                """{"properties":{"a":{}},"additionalProperties":false}""",
                listOf("""{"a":1}"""),
                listOf("""{"b":1}"""),
            ),
            Keyword(
                """{"additionalProperties":{"type":"null"}}""",
                listOf("""{"a":null}"""),
                listOf("""{"a":1}"""),
            ),
            Keyword(
                """{"anyOf":[{"type":"null"},{"minimum":1}]}""",
                listOf("null", "1", "\"x\""),
                listOf("0"),
            ),
        )

    @TestFactory
    fun keywords(): List<DynamicTest> =
        keywords.map { keyword ->
            dynamicTest(keyword.schema) {
                val schema = schema(keyword.schema)
                for (value in keyword.legal) schema.check(parse(value), "x")
                for (value in keyword.refused) assertThrows<Damaged>(value) {
                    schema.check(parse(value), "x")
                }
            }
        }

    @Test
    fun `another keyword, type or open pattern is no schema`() {
        val others =
            listOf(
                """{"not":{}}""",
                """{"${'$'}ref":"#"}""",
                """{"items":{"oneOf":[]}}""",
                """{"pattern":"a"}""",
            )
        for (other in others) assertThrows<IllegalArgumentException>(other) { schema(other) }
        assertThrows<IllegalArgumentException> { schema("""{"type":"text"}""") }
    }

    @Test
    fun `the place of a value is told`() {
        val schema =
            schema("""{"properties":{"a":{"items":{"properties":{"b":{"type":"null"}}}}}}""")
        val refusal = assertThrows<Damaged> { schema.check(parse("""{"a":[{},{"b":1}]}"""), "m") }
        assertEquals("m.a[1].b: it must be null", refusal.message)
    }

    @Test
    fun `the option that came farthest is told`() {
        val manifest = TestBundles.manifest(TestBundles.original)
        TestBundles.set(
            manifest,
            listOf(
                "tasks",
                0.0,
                "flow",
                "calls",
                0.0,
                "inputs",
                "input_ids",
                "sources",
                0.0,
                "tokenizer",
            ),
            5.0,
        )
        val refusal = assertThrows<Damaged> { Schema.OF_MANIFEST.check(manifest, MANIFEST) }
        assertTrue(refusal.where.endsWith(".sources[0].tokenizer"), refusal.message)
    }

    @Test
    fun `limits are told as a manifest writes them`() {
        val refusal = assertThrows<Damaged> { schema("""{"minimum":1}""").check(0.5, "x") }
        assertEquals("x: it must be 1 to any, got 0.5", refusal.message)
        val above = assertThrows<Damaged> { schema("""{"exclusiveMinimum":0}""").check(0.0, "x") }
        assertEquals("x: it must be above 0", above.message)
    }
}
