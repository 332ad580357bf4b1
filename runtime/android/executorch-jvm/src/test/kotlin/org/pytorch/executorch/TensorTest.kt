package org.pytorch.executorch

import java.nio.BufferOverflowException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class TensorTest {
    @Test
    fun `a tensor shares the buffer that it is on`() {
        val buffer = Tensor.allocateFloatBuffer(6)
        val tensor = Tensor.fromBlob(buffer, longArrayOf(2, 3))
        buffer.put(5, 7f)
        assertEquals(7f, tensor.dataAsFloatArray[5])
        assertEquals(6, tensor.numel())
        assertEquals(DType.FLOAT, tensor.dtype())
        assertSame(buffer, tensor.getRawDataBuffer())
        tensor.shape()[0] = 9
        assertArrayEquals(longArrayOf(2, 3), tensor.shape())
    }

    @Test
    fun `reading does not depend on the buffer's position`() {
        val buffer = Tensor.allocateIntBuffer(2).apply { put(intArrayOf(4, 5)) }
        val tensor = Tensor.fromBlob(buffer, longArrayOf(2))
        repeat(2) { assertArrayEquals(intArrayOf(4, 5), tensor.dataAsIntArray) }
        assertEquals(2, buffer.position())
    }

    @Test
    fun `buffers and shapes that do not fit are refused`() {
        val big = ByteBuffer.allocateDirect(8).order(ByteOrder.BIG_ENDIAN).asFloatBuffer()
        for (tensor in
            listOf<() -> Tensor>(
                { Tensor.fromBlob(FloatBuffer.allocate(2), longArrayOf(2)) },
                { Tensor.fromBlob(big, longArrayOf(2)) },
                { Tensor.fromBlob(Tensor.allocateFloatBuffer(2), longArrayOf(3)) },
                { Tensor.fromBlob(Tensor.allocateFloatBuffer(2), longArrayOf(-1, -2)) },
            )) assertThrows(IllegalArgumentException::class.java) { tensor() }
        assertThrows(ArithmeticException::class.java) {
            Tensor.fromBlob(Tensor.allocateFloatBuffer(2), longArrayOf(Long.MAX_VALUE, 3))
        }
    }

    @Test
    fun `a tensor is read as its own type alone`() {
        val tensor = Tensor.fromBlob(longArrayOf(1, 2), longArrayOf(2))
        assertArrayEquals(longArrayOf(1, 2), tensor.dataAsLongArray)
        val error = assertThrows(IllegalStateException::class.java) { tensor.dataAsFloatArray }
        assertTrue("INT64" in error.message!!, error.message)
        assertThrows(IllegalStateException::class.java) {
            tensor.copyDataInto(FloatBuffer.allocate(2))
        }
    }

    @Test
    fun `copies go to the target's position`() {
        val target = FloatBuffer.allocate(3).apply { put(9f) }
        Tensor.fromBlob(floatArrayOf(1f, 2f), longArrayOf(2)).copyDataInto(target)
        assertArrayEquals(floatArrayOf(9f, 1f, 2f), target.array())
        assertThrows(BufferOverflowException::class.java) {
            Tensor.fromBlob(floatArrayOf(1f), longArrayOf(1)).copyDataInto(target)
        }
    }

    @Test
    fun `halves are the numbers that their bits say`() {
        val bits =
            intArrayOf(
                0x0000,
                0x8000,
                0x3C00,
                0xC000,
                0x7BFF,
                0x0001,
                0x03FF,
                0x0400,
                0x7C00,
                0xFC00,
            )
        val numbers =
            floatArrayOf(
                0f,
                -0f,
                1f,
                -2f,
                65504f,
                5.9604645e-8f,
                6.0975552e-5f,
                6.1035156e-5f,
                Float.POSITIVE_INFINITY,
                Float.NEGATIVE_INFINITY,
            )
        val tensor =
            Tensor.fromBlob(
                ShortArray(bits.size) { bits[it].toShort() },
                longArrayOf(bits.size.toLong()),
            )
        assertArrayEquals(numbers, tensor.dataAsFloatArray)
        val target = FloatBuffer.allocate(bits.size)
        tensor.copyDataInto(target)
        assertArrayEquals(numbers, target.array())
        assertTrue(BlobTensor.number(0x7E00).isNaN())
    }

    @Test
    fun `memory that was taken back is not read`() {
        val lease = Lease()
        val bytes = Tensor.allocateByteBuffer(8)
        val tensor = BlobTensor.borrowed(bytes, longArrayOf(2), DType.FLOAT, lease)
        assertArrayEquals(floatArrayOf(0f, 0f), tensor.dataAsFloatArray)
        lease.ended = true
        assertThrows(IllegalStateException::class.java) { tensor.dataAsFloatArray }
        assertArrayEquals(longArrayOf(2), tensor.shape())
    }

    @Test
    fun `values give what they hold`() {
        val tensor = Tensor.fromBlob(floatArrayOf(1f), longArrayOf(1))
        assertSame(tensor, EValue.from(tensor).toTensor())
        assertEquals(3L, EValue.from(3L).toInt())
        assertEquals(0.5, EValue.from(0.5).toDouble())
        assertTrue(EValue.from(true).toBool() && EValue.optionalNone().isNone)
        assertEquals("a", EValue.from("a").toStr())
        val error = assertThrows(IllegalStateException::class.java) { EValue.from(3L).toTensor() }
        assertEquals("the value is an Int, not a tensor", error.message)
    }

    @Test
    fun `types have ExecuTorch's codes`() {
        val codes =
            mapOf(
                0 to "UINT8",
                1 to "INT8",
                3 to "INT32",
                5 to "HALF",
                6 to "FLOAT",
                11 to "BOOL",
                15 to "BFLOAT16",
            )
        for ((code, name) in codes) assertEquals(name, DType.fromJniCode(code).name)
        assertThrows(IllegalArgumentException::class.java) { DType.fromJniCode(99) }
    }
}
