package org.pytorch.executorch

import java.nio.Buffer
import java.nio.BufferOverflowException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/** How long a module's memory stays what a method has left in it. */
internal class Lease {
    @Volatile var ended = false
}

/** A tensor on native memory: the caller's, or, with a [lease], a module's. */
internal class BlobTensor(
    private val data: Buffer,
    shape: LongArray,
    private val type: DType,
    private val lease: Lease? = null,
) : Tensor(shape) {
    override fun dtype(): DType = type

    override fun getRawDataBuffer(): Buffer {
        check(lease == null || !lease.ended) {
            "the module has run again or has ended: copy outputs at once"
        }
        return data
    }

    // A copy of the buffer has a position of its own, and is read from the first element.
    private inline fun <reified B : Buffer> read(wanted: DType, duplicate: (B) -> B): B? {
        if (type != wanted) return null
        return duplicate(getRawDataBuffer() as B).apply { clear() }
    }

    override val dataAsByteArray: ByteArray
        get() =
            read(DType.INT8, ByteBuffer::duplicate)?.let { ByteArray(it.remaining()).also(it::get) }
                ?: super.dataAsByteArray

    override val dataAsUnsignedByteArray: ByteArray
        get() =
            read(DType.UINT8, ByteBuffer::duplicate)?.let {
                ByteArray(it.remaining()).also(it::get)
            } ?: super.dataAsUnsignedByteArray

    override val dataAsShortArray: ShortArray
        get() =
            read(DType.HALF, ShortBuffer::duplicate)?.let {
                ShortArray(it.remaining()).also(it::get)
            } ?: super.dataAsShortArray

    override val dataAsIntArray: IntArray
        get() =
            read(DType.INT32, IntBuffer::duplicate)?.let { IntArray(it.remaining()).also(it::get) }
                ?: super.dataAsIntArray

    override val dataAsLongArray: LongArray
        get() =
            read(DType.INT64, LongBuffer::duplicate)?.let {
                LongArray(it.remaining()).also(it::get)
            } ?: super.dataAsLongArray

    override val dataAsFloatArray: FloatArray
        get() =
            read(DType.FLOAT, FloatBuffer::duplicate)?.let {
                FloatArray(it.remaining()).also(it::get)
            }
                ?: read(DType.HALF, ShortBuffer::duplicate)?.let { bits ->
                    FloatArray(bits.remaining()) { number(bits.get()) }
                }
                ?: super.dataAsFloatArray

    override val dataAsDoubleArray: DoubleArray
        get() =
            read(DType.DOUBLE, DoubleBuffer::duplicate)?.let {
                DoubleArray(it.remaining()).also(it::get)
            } ?: super.dataAsDoubleArray

    override fun copyDataInto(dst: FloatBuffer) {
        val floats = read(DType.FLOAT, FloatBuffer::duplicate)
        val bits = read(DType.HALF, ShortBuffer::duplicate)
        when {
            floats != null -> dst.put(floats)
            bits == null -> super.copyDataInto(dst)
            dst.remaining() < bits.remaining() -> throw BufferOverflowException()
            else -> while (bits.hasRemaining()) dst.put(number(bits.get()))
        }
    }

    override fun copyDataInto(dst: IntBuffer) {
        read(DType.INT32, IntBuffer::duplicate)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: LongBuffer) {
        read(DType.INT64, LongBuffer::duplicate)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: DoubleBuffer) {
        read(DType.DOUBLE, DoubleBuffer::duplicate)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: ShortBuffer) {
        read(DType.HALF, ShortBuffer::duplicate)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: ByteBuffer) {
        read(DType.INT8, ByteBuffer::duplicate)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    internal companion object {
        fun checked(
            data: Buffer,
            isDirect: Boolean,
            order: ByteOrder,
            shape: LongArray,
            type: DType,
        ): Tensor {
            require(isDirect) { "a direct buffer is needed (ByteBuffer.allocateDirect)" }
            val isNative = type.bytes == 1 || order == ByteOrder.nativeOrder()
            require(isNative) { "a buffer in native order is needed (ByteOrder.nativeOrder())" }
            val count = count(shape)
            require(count == data.capacity().toLong()) {
                "${data.capacity()} elements are no tensor ${shape.contentToString()}"
            }
            return BlobTensor(data, shape, type)
        }

        /** A tensor of a module's memory. */
        fun borrowed(bytes: ByteBuffer, shape: LongArray, type: DType, lease: Lease): Tensor {
            val data = bytes.order(ByteOrder.nativeOrder())
            val typed: Buffer =
                when (type) {
                    DType.FLOAT -> data.asFloatBuffer()
                    DType.INT32 -> data.asIntBuffer()
                    DType.INT64 -> data.asLongBuffer()
                    DType.DOUBLE -> data.asDoubleBuffer()
                    DType.HALF,
                    DType.INT16,
                    DType.BFLOAT16 -> data.asShortBuffer()
                    DType.UINT8,
                    DType.INT8,
                    DType.BOOL -> data
                }
            return BlobTensor(typed, shape, type, lease)
        }

        /** The number whose 16 bits, by IEEE 754, are [half]. */
        fun number(half: Short): Float {
            val bits = half.toInt()
            val sign = bits and 0x8000 shl 16
            val exponent = bits shr 10 and 31
            val fraction = bits and 0x3FF
            val magnitude =
                when (exponent) {
                    0 -> java.lang.Float.floatToRawIntBits(fraction / 16_777_216f)
                    31 -> 0x7F800000 or (fraction shl 13)
                    else -> exponent + 112 shl 23 or (fraction shl 13)
                }
            return java.lang.Float.intBitsToFloat(sign or magnitude)
        }
    }
}
