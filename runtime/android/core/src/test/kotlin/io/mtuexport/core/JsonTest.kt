package io.mtuexport.core

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

internal class JsonTest {
    private fun parse(text: String): Any? = Json.parse(text.toByteArray(), "x.json")

    private fun refusal(text: String): String = assertThrows<Damaged> { parse(text) }.what

    @Test
    fun `values of every type`() {
        val text =
            " {\"a\" : [1, -2.5e1, 0, -0.0, true, false, null, \"\"], \"b\":{} ,\"c\":[]}\r\n\t"
        val expected =
            mapOf(
                "a" to listOf(1.0, -25.0, 0.0, -0.0, true, false, null, ""),
                "b" to emptyMap<String, Any?>(),
                "c" to emptyList<Any?>(),
            )
        assertEquals(expected, parse(text))
        assertEquals(
            listOf("z", "a", "m"),
            parse("{\"z\":1,\"a\":2,\"m\":3}").asObject().keys.toList(),
        )
    }

    @Test
    fun `one and 1 point 0 are one number, and true is none`() {
        assertEquals(parse("[1]"), parse("[1.0]"))
        assertEquals(parse("[100]"), parse("[1e2]"))
        assertNotEquals(parse("[1]"), parse("[true]"))
    }

    @Test
    fun `escapes and pairs of surrogates`() {
        assertEquals(
            "\"\\/\b\u000c\n\r\t\u00e9\ud83d\ude00\u007f",
            parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00E9\\ud83d\\uDE00\u007f\""),
        )
    }

    @ParameterizedTest
    @ValueSource(
        strings =
            [
                "",
                " ",
                "{",
                "[",
                "[1",
                "[1,",
                "[1,]",
                "{\"a\"",
                "{\"a\":",
                "{\"a\":1",
                "{\"a\":1,}",
                "{a:1}",
                "{1:1}",
                "01",
                "+1",
                "1.",
                ".5",
                "1e",
                "1e+",
                "-",
                "--1",
                "0x1",
                "1_0",
                "1f",
                "Infinity",
                "-Infinity",
                "NaN",
                "nul",
                "True",
                "'a'",
                "\"",
                "\"a",
                "\"\\",
                "\"\\x\"",
                "\"\\u12\"",
                "\"\\u12g4\"",
                "\"\n\"",
                "\"\u0000\"",
                "1 1",
                "[] []",
                "// x\n1",
                "[1 2]",
                "{\"a\" 1}",
                "\ufeff1",
                "\u00a01",
                "\u000b1",
                "[1}",
            ]
    )
    fun `no JSON`(text: String) {
        assertThrows<Damaged> { parse(text) }
    }

    @Test
    fun `a key twice, also where an escape hides it`() {
        assertEquals("key \"a\" is there twice", refusal("{\"a\":1,\"b\":2,\"a\":1}"))
        assertEquals("key \"a\" is there twice", refusal("{\"a\":1,\"\\u0061\":1}"))
        assertEquals(2, parse("{\"a\":1,\"A\":1}").asObject().size)
    }

    @Test
    fun `numbers beyond a double, of whatever length`() {
        assertEquals(1e308, parse("1e308"))
        assertEquals(1.0, parse("1." + "0".repeat(1_000_000)))
        assertEquals(0.0, parse("1e-99999999999999999999"))
        for (text in
            listOf(
                "1e309",
                "-1e999",
                "1e99999999999999999999",
                "9".repeat(400),
                "9".repeat(1_000_000),
            )) {
            assertTrue(refusal(text).endsWith("is not finite"))
        }
    }

    @Test
    fun `half a surrogate pair in a value or a key`() {
        val halves = listOf("\\ud800", "\\udc00", "\\ude00\\ud83d", "x\\ud83dx")
        for (half in halves) {
            assertTrue(refusal("[\"$half\"]").startsWith("half a surrogate pair"))
            assertTrue(refusal("{\"$half\":1}").startsWith("half a surrogate pair"))
        }
    }

    @Test
    fun `bytes that are not UTF-8`() {
        val endings =
            listOf(
                "80",
                "c0af",
                "e08080",
                "eda080",
                "f08080af",
                "f4908080",
                "f5",
                "ff",
                "c3",
                "e282",
            )
        for (hex in endings) {
            val bytes = "\"".toByteArray() + TestBundles.bytes(hex) + "\"".toByteArray()
            assertEquals(
                "it is not UTF-8",
                assertThrows<Damaged>(hex) { Json.parse(bytes, "x.json") }.what,
            )
        }
    }

    @Test
    fun `64 objects and lists inside one another, not 65`() {
        parse("[".repeat(64) + "]".repeat(64))
        parse("{\"a\":".repeat(64) + "1" + "}".repeat(64))
        val deep = "more than 64 objects and lists inside one another"
        assertEquals(deep, refusal("[".repeat(65) + "]".repeat(65)))
        assertEquals(deep, refusal("{\"a\":[".repeat(33) + "]}".repeat(33)))
        assertEquals(deep, refusal("[".repeat(4_000_000)))
    }

    @Test
    fun `what is written is read again`() {
        val value =
            mapOf(
                "a\"\\\n\u00e9\ud83d\ude00" to
                    listOf(null, true, 1.0, -0.5, 1e300, 1e-7, 9007199254740991.0),
                "b" to mapOf("c" to emptyList<Any?>()),
            )
        assertEquals(value, parse(Json.write(value)))
        assertEquals("[1,2,3.5]", Json.write(listOf(1L, 2.0, 3.5)))
        assertThrows<IllegalArgumentException> { Json.write(Double.NaN) }
    }

    @Test
    fun `names of others are told in one printable piece`() {
        assertEquals("\"a?b?\"", quoted("a\nb\u202e"))
        assertEquals(80, quoted("x".repeat(1000)).length)
    }
}
