package io.mtuexport.android

import io.mtuexport.core.Memory
import io.mtuexport.core.MtuException
import java.io.InputStream
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** The arithmetic of this module. What calls Android itself is compiled here, and not run. */
class PicturesTest {
    private fun bytes(vararg levels: Int) = ByteArray(levels.size) { levels[it].toByte() }

    @Test
    fun `alpha is divided out`() {
        val pixels = bytes(10, 20, 30, 255, 64, 128, 1, 128, 9, 9, 9, 0, 200, 1, 0, 100)
        divideOutAlpha(pixels)
        assertArrayEquals(
            bytes(10, 20, 30, 255, 128, 255, 2, 128, 0, 0, 0, 0, 255, 3, 0, 100),
            pixels,
        )
    }

    @Test
    fun `alpha multiplied in and divided out is the same within what it keeps`() {
        for (alpha in 1..255) for (level in 0..255) {
            val multiplied = (level * alpha + 127) / 255
            val pixel = bytes(multiplied, multiplied, multiplied, alpha)
            divideOutAlpha(pixel)
            val error = Math.abs((pixel[0].toInt() and 255) - level)
            assertTrue(error <= 128 / alpha + 1, "$alpha $level $error")
        }
    }

    @Test
    fun `lines lose their padding`() {
        val packed = ByteArray(8)
        unpad(bytes(1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 0, 0), 6, packed, 4)
        assertArrayEquals(bytes(1, 2, 3, 4, 5, 6, 7, 8), packed)
    }

    @Test
    fun `pictures become opaque pixels`() {
        assertArrayEquals(bytes(1, 2, 3, 255, 4, 5, 6, 255), opaque(bytes(1, 2, 3, 4, 5, 6)))
    }

    @Test
    fun `sizes are refused by the header`() {
        requireSize(10_000, 10_000)
        for ((width, height) in
            listOf(10_001 to 10_000, Int.MAX_VALUE to Int.MAX_VALUE, 0 to 5, -1 to -1)) {
            assertThrows(MtuException.RequestRefused::class.java) { requireSize(width, height) }
        }
    }

    @Test
    fun `a heap that is full is one of our errors`() {
        val error =
            assertThrows(MtuException.OutOfMemory::class.java) {
                inMemory { throw OutOfMemoryError("Failed to allocate") }
            }
        assertEquals("not enough memory for the picture", error.message)
    }

    @Test
    fun `a file without an end is refused`() {
        val endless =
            object : InputStream() {
                override fun read() = 0
            }
        assertThrows(MtuException.RequestRefused::class.java) { readAll(endless, 1_000_000) }
        assertArrayEquals(
            ByteArray(70_000) { 7 },
            readAll(ByteArray(70_000) { 7 }.inputStream(), 70_000),
        )
    }

    @Test
    fun `advice where weights exceed what is free above the threshold`() {
        assertNull(adviceFor(100, 300, 200, Memory.LEAST))
        val advice = adviceFor(3_000_000_000, 2_500_000_000, 500_000_000, Memory.ALL)
        assertEquals(
            "the weights are 3,000 MB, 2,000 MB are free: use Memory.LEAST or close other apps",
            advice,
        )
        assertEquals(
            "the weights are 0 MB, 0 MB are free: close other apps",
            adviceFor(1, 5, 10, Memory.LEAST),
        )
    }
}
