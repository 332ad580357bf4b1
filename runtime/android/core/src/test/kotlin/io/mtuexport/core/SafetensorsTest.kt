package io.mtuexport.core

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

internal class SafetensorsTest {
    @TempDir lateinit var folder: File

    private fun file(header: String, data: ByteArray = ByteArray(0), length: Long? = null): File {
        val bytes = header.toByteArray()
        val size =
            ByteBuffer.allocate(8)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(length ?: bytes.size.toLong())
                .array()
        return folder.resolve("x.safetensors").apply { writeBytes(size + bytes + data) }
    }

    private fun floats(vararg values: Float): ByteArray =
        ByteBuffer.allocate(4 * values.size)
            .order(ByteOrder.LITTLE_ENDIAN)
            .also { it.asFloatBuffer().put(values) }
            .array()

    private fun refusal(
        header: String,
        data: ByteArray = ByteArray(8),
        length: Long? = null,
    ): String =
        assertThrows<Damaged>(header) { Safetensors.open(file(header, data, length)) }.message!!

    private fun entry(dtype: String = "F32", shape: String = "[2]", offsets: String = "[0,8]") =
        """{"a":{"dtype":"$dtype","shape":$shape,"data_offsets":$offsets}}"""

    @Test
    fun `tensors of both types, and what is no tensor`() {
        val header =
            """
            |{"__metadata__":{"x":"y"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},
            |"b":{"dtype":"I32","shape":[],"data_offsets":[0,4]},
            |"c":{"dtype":"F32","shape":[0,3],"data_offsets":[12,12]}}
            """
                .trimMargin()
        val opened = Safetensors.open(file(header, byteArrayOf(7, 0, 0, -128) + floats(1.5f, -2f)))
        assertEquals(setOf("a", "b", "c"), opened.names)
        val a = opened.floats("a")
        assertArrayEquals(intArrayOf(1, 2), a.shape)
        assertArrayEquals(floatArrayOf(1.5f, -2f), a.data)
        val b = opened.read("b") as Tensor.Ints
        assertArrayEquals(intArrayOf(Int.MIN_VALUE + 7), b.data)
        assertEquals(0, opened.floats("c").data.size)
        assertThrows<Damaged> { opened.floats("b") }
        assertThrows<Damaged> { opened.read("d") }
    }

    @Test
    fun `headers that do not fit`() {
        for (cut in 0 until 8) {
            folder.resolve("cut").writeBytes(ByteArray(cut))
            assertThrows<Damaged> { Safetensors.open(folder.resolve("cut")) }
        }
        for (length in listOf(100L, 4_000_001L, Long.MAX_VALUE, -1L, Long.MIN_VALUE)) {
            assertTrue(refusal("{}", length = length).contains("a header of"))
        }
        for (header in listOf("", "[]", "1", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}")) refusal(
            header
        )
        refusal("""{"a":1,"a":1}""")
    }

    @Test
    fun `entries that do not fit`() {
        Safetensors.open(file(entry(), ByteArray(8)))
        Safetensors.open(file(entry(shape = "[2.0]"), ByteArray(8)))
        for (dtype in listOf("F16", "f32", "I64", "")) refusal(entry(dtype = dtype))
        val shapes =
            listOf(
                "[3]",
                "[1]",
                "2",
                "[-2]",
                "[2.5]",
                "[\"2\"]",
                "[true]",
                "null",
                "[0]",
                "[2,0]",
                "[4294967298]",
                "[1e300]",
                "[65536,65536,65536,65536,2]",
                "[2147483647,2147483647,2147483647]",
                "[9007199254740993]",
            )
        for (shape in shapes) refusal(entry(shape = shape))
        val offsets =
            listOf(
                "[0]",
                "[0,8,8]",
                "[8,0]",
                "[-8,0]",
                "[4,12]",
                "[0,9]",
                "[0.5,8.5]",
                "8",
                "[1e18,1e18]",
            )
        for (each in offsets) refusal(entry(offsets = each))
    }

    @Test
    fun `numbers that are not finite`() {
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY)) {
            val opened = Safetensors.open(file(entry(), floats(1f, bad)))
            assertThrows<Damaged> { opened.floats("a") }
            assertThrows<Damaged> { opened.requireFinite(listOf("a")) }
        }
        Safetensors.open(file(entry(), floats(Float.MAX_VALUE, -0f))).requireFinite(listOf("a"))
        Safetensors.open(file(entry(dtype = "I32"), floats(Float.NaN, 1f)))
            .requireFinite(listOf("a"))
    }

    @Test
    fun `a tensor of several pieces, and of a file that has become shorter`() {
        val values = FloatArray(200_000) { it.toFloat() }
        val path = file(entry(shape = "[200000]", offsets = "[0,800000]"), floats(*values))
        val opened = Safetensors.open(path)
        assertArrayEquals(values, opened.floats("a").data)
        RandomAccessFile(path, "rw").use { it.setLength(700_000) }
        assertThrows<Damaged> { opened.floats("a") }
        assertThrows<Damaged> { opened.requireFinite(listOf("a")) }
    }

    @Test
    fun `of a tensor larger than the heap, a piece at a time is held`() {
        val path = file(entry(shape = "[300000000]", offsets = "[0,1200000000]"))
        RandomAccessFile(path, "rw").use { it.setLength(1_200_000_000L + path.length()) }
        assertTrue(Runtime.getRuntime().maxMemory() < 1_200_000_000L)
        Safetensors.open(path).requireFinite(listOf("a"))
    }

    @Test
    fun `what tensors share is read once, and the one that is not finite is named`() {
        val size = 4_000_000
        val many =
            (0 until 200).map {
                "\"$it\":{\"dtype\":\"F32\",\"shape\":[999999],\"data_offsets\":[${it % 4},${it % 4 + 3_999_996}]}"
            }
        val path = file(many.joinToString(",", "{", "}"), ByteArray(size))
        val opened = Safetensors.open(path)
        val before = TestBundles.bytesRead()
        opened.requireFinite(opened.names)
        assertTrue(TestBundles.bytesRead() - before < 5L * size)
        val two =
            """
            |{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            |"b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}
            """
                .trimMargin()
        val damaged = Safetensors.open(file(two, floats(1f, 2f, 3f, Float.NaN)))
        damaged.requireFinite(listOf("a"))
        val refusal = assertThrows<Damaged> { damaged.requireFinite(damaged.names) }
        assertEquals("\"b\" is not finite", refusal.what)
    }
}
