package io.mtuexport.core

import io.mtuexport.testkit.TestData
import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class NoiseTest {
    private val data = TestData.open()

    @Test
    fun `the words and first numbers of seed 7 are those of the appendix`() {
        val words = NumpyNoise.seedWords(intArrayOf(7)).map { it.toUInt().toString() }
        assertEquals(
            "2083679832 3939563265 4185785210 142198000 1732601695 1648004171 1614310572 3007594413",
            words.joinToString(" "),
        )
        val noise = NumpyNoise(7)
        val numbers = List(6) { noise.next32().toUInt().toString() }
        assertEquals(
            "4058335883 2684764585 2938530453 3853503932 2483747170 3331544671",
            numbers.joinToString(" "),
        )
    }

    @Test
    fun `the layers are those of the appendix`() {
        val limits = bytes(Layers.limits.size) { putInt(Layers.limits[it]) }
        assertEquals(
            "b00c1701b8ee9b5e5bb285bef552e979942af25328141d131b0ad8183643fd39",
            sha256(limits),
        )
        val widths = bytes(Layers.widths.size) { putFloat(Layers.widths[it]) }
        assertEquals(
            "7e876b6f831f031c494d3f21c00f1845928d7ba8984b207e08b3fcba766a67fd",
            sha256(widths),
        )
        val heights = bytes(Layers.heights.size) { putFloat(Layers.heights[it]) }
        assertEquals(
            "3ec75aef4fc5308b6f948d1fd8d0eef691a752eebbaa91914fc111948aea6ad8",
            sha256(heights),
        )
    }

    @TestFactory
    fun `the draws are numpy's, bit by bit`(): List<DynamicTest> =
        data.cases("noise.json").map { case ->
            dynamicTest("seed ${case["seed"]}") {
                val count = (case["count"] as Double).toInt()
                val draws = NumpyNoise(entropyOf(BigInteger(case["seed"] as String))).draws(count)
                val first =
                    (case["first"] as List<*>).map { (it as Double).toFloat() }.toFloatArray()
                assertArrayEquals(first, draws.copyOf(first.size))
                assertEquals(case["sha256"], sha256(bytes(count) { putFloat(draws[it]) }))
            }
        }

    @Test
    fun `a long is the seed that its number is`() {
        for (seed in listOf(0L, 7L, 4294967295L, 4294967297L, Long.MAX_VALUE)) {
            val expected = NumpyNoise(entropyOf(BigInteger.valueOf(seed))).draws(64)
            assertArrayEquals(expected, NumpyNoise(seed).draws(64), "seed $seed")
        }
    }

    /** 32-bit words, the lowest first, without zeros at the top. */
    private fun entropyOf(seed: BigInteger): IntArray {
        val words =
            generateSequence(seed) { it.shiftRight(32) }
                .takeWhile { it.signum() > 0 }
                .map { it.toInt() }
                .toList()
        return if (words.isEmpty()) intArrayOf(0) else words.toIntArray()
    }

    private fun bytes(count: Int, put: ByteBuffer.(Int) -> Unit): ByteArray {
        val buffer = ByteBuffer.allocate(4 * count).order(ByteOrder.LITTLE_ENDIAN)
        repeat(count) { buffer.put(it) }
        return buffer.array()
    }

    private fun sha256(bytes: ByteArray) =
        MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
}
