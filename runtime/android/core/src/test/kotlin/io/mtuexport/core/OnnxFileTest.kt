package io.mtuexport.core

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.RandomAccessFile
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

internal class OnnxFileTest {
    @TempDir lateinit var folder: File

    private fun varint(value: Long): ByteArray {
        val out = ByteArrayOutputStream()
        var rest = value
        while (rest and 127L.inv() != 0L) {
            out.write((rest and 127 or 128).toInt())
            rest = rest ushr 7
        }
        out.write(rest.toInt())
        return out.toByteArray()
    }

    private fun field(number: Int, content: ByteArray) =
        varint(number * 8L + 2) + varint(content.size.toLong()) + content

    private fun entry(key: String, value: String) =
        field(13, field(1, key.toByteArray()) + field(2, value.toByteArray()))

    private fun within(content: ByteArray, vararg numbers: Int): ByteArray =
        numbers.reversed().fold(content) { inner, number -> field(number, inner) }

    private fun locations(bytes: ByteArray): Set<String> {
        folder.resolve("x.onnx").writeBytes(bytes)
        return OnnxFile.locations(BundleFiles(folder), "x.onnx")
    }

    @Test
    fun `external data is found wherever a tensor may be`() {
        val places =
            listOf(
                intArrayOf(7, 5),
                intArrayOf(7, 15, 1),
                intArrayOf(7, 15, 2),
                intArrayOf(7, 1, 5, 5),
                intArrayOf(7, 1, 5, 10),
                intArrayOf(7, 1, 5, 22, 1),
                intArrayOf(7, 1, 5, 23, 2),
                intArrayOf(25, 7, 5, 5),
                intArrayOf(25, 11, 5),
                intArrayOf(25, 11, 23, 1),
            )
        for (place in places) {
            val name = place.joinToString("_")
            assertEquals(setOf(name), locations(within(entry("location", name), *place)))
        }
        assertEquals(emptySet<String>(), locations(within(entry("location", "x"), 8, 5)))
        assertEquals(emptySet<String>(), locations(within(entry("offset", "x"), 7, 5)))
        assertEquals(
            setOf("a", "b"),
            locations(within(entry("location", "b") + entry("location", "a"), 7, 5)),
        )
    }

    @Test
    fun `the value may stand before the key, the last of each counts`() {
        val swapped =
            field(
                13,
                field(2, "a".toByteArray()) +
                    field(1, "x".toByteArray()) +
                    field(1, "location".toByteArray()),
            )
        assertEquals(setOf("a"), locations(within(swapped, 7, 5)))
    }

    @Test
    fun `a graph in a node breaks rule 13`() {
        for (place in
            listOf(
                intArrayOf(7, 1, 5, 6),
                intArrayOf(7, 1, 5, 11),
                intArrayOf(25, 7, 5, 6),
                intArrayOf(25, 11, 6),
            )) {
            val refusal =
                assertThrows<MtuException.BundleRefused> { locations(within(ByteArray(0), *place)) }
            assertEquals(13, refusal.rule)
        }
    }

    @Test
    fun `locations that are no plain name`() {
        val names =
            listOf(
                "",
                ".",
                "..",
                "../x",
                "a/b",
                "a\\b",
                ".x",
                "-x",
                "a b",
                "\u00e9",
                "a\u0000",
                "x".repeat(256),
            )
        for (name in names) {
            assertThrows<Damaged>(name) { locations(within(entry("location", name), 7, 5)) }
        }
        assertThrows<Damaged> {
            locations(within(field(13, field(1, "location".toByteArray())), 7, 5))
        }
    }

    @Test
    fun `other fields are stepped over, whatever their size`() {
        val others =
            varint(8 * 3L) +
                varint(-1L) +
                varint(8 * 4L + 1) +
                ByteArray(8) +
                varint(8 * 5L + 5) +
                ByteArray(4)
        assertEquals(setOf("x"), locations(others + within(others + entry("location", "x"), 7, 5)))
        val size = 3_000_000_000L // a hole of raw data in a tensor, before the entry
        val raw = varint(9 * 8L + 2) + varint(size)
        val after = entry("location", "x")
        val tensor = varint(5 * 8L + 2) + varint(raw.size + size + after.size)
        val graph = varint(7 * 8L + 2) + varint(tensor.size + raw.size + size + after.size)
        RandomAccessFile(folder.resolve("x.onnx"), "rw").use {
            it.write(graph + tensor + raw)
            it.seek(it.filePointer + size)
            it.write(after)
        }
        assertEquals(setOf("x"), OnnxFile.locations(BundleFiles(folder), "x.onnx"))
    }

    @Test
    fun `what is no protobuf message`() {
        val broken =
            listOf(
                byteArrayOf(-1),
                byteArrayOf(58),
                byteArrayOf(58, 5, 0),
                byteArrayOf(11),
                byteArrayOf(12),
                byteArrayOf(14),
                byteArrayOf(0, 0),
                byteArrayOf(2, 0),
                byteArrayOf(9, 0),
                byteArrayOf(13, 0),
                byteArrayOf(8),
                ByteArray(11) { -1 },
                byteArrayOf(58) + varint(Long.MAX_VALUE),
                byteArrayOf(58) + varint(-1),
                varint(1L shl 33 or 2) + byteArrayOf(0),
            )
        for (bytes in broken) assertThrows<Damaged>(bytes.joinToString()) { locations(bytes) }
    }

    @Test
    fun `random bytes are refused or read`() {
        val random = Random(2)
        val good = TestBundles.original.resolve("unet/model.onnx").readBytes()
        var refused = 0
        repeat(2000) {
            val bytes = good.copyOf(20_000)
            repeat(3) { bytes[random.nextInt(200)] = random.nextInt().toByte() }
            try {
                locations(bytes)
            } catch (_: Damaged) {
                refused += 1
            } catch (refusal: MtuException.BundleRefused) {
                assertEquals(13, refusal.rule)
            }
        }
        assertEquals(true, refused > 100)
    }
}
