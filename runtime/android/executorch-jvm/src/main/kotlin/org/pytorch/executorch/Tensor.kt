package org.pytorch.executorch

import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * A dense array in native memory, row-major.
 *
 * A tensor made by `fromBlob` of a direct buffer shares it; one made of an array holds a copy. A
 * tensor that a method gave lies in the module's own memory, which the next call of the module, or
 * its end, takes back: asking it for data afterwards throws IllegalStateException.
 */
public abstract class Tensor internal constructor(shape: LongArray) {
    private val extents = shape.clone()

    /** Extents, the outermost first; a copy. */
    public fun shape(): LongArray = extents.clone()

    /** The number of elements: the product of the extents. */
    public fun numel(): Long = count(extents)

    /** The elements' type. */
    public abstract fun dtype(): DType

    /** A copy of elements of [DType.INT8]. */
    public open val dataAsByteArray: ByteArray
        get() = refuse("bytes")

    /** A copy of elements of [DType.UINT8], each as the byte of the same bits. */
    public open val dataAsUnsignedByteArray: ByteArray
        get() = refuse("unsigned bytes")

    /** A copy of elements of [DType.HALF], as their bits. */
    public open val dataAsShortArray: ShortArray
        get() = refuse("shorts")

    /** A copy of elements of [DType.INT32]. */
    public open val dataAsIntArray: IntArray
        get() = refuse("ints")

    /** A copy of elements of [DType.INT64]. */
    public open val dataAsLongArray: LongArray
        get() = refuse("longs")

    /** A copy of elements of [DType.FLOAT], or of [DType.HALF] as the same numbers. */
    public open val dataAsFloatArray: FloatArray
        get() = refuse("floats")

    /** A copy of elements of [DType.DOUBLE]. */
    public open val dataAsDoubleArray: DoubleArray
        get() = refuse("doubles")

    /**
     * Puts elements of [DType.FLOAT] into [dst] at its position; [java.nio.BufferOverflowException]
     * if it is short.
     */
    public open fun copyDataInto(dst: FloatBuffer): Unit = refuse("floats")

    /** Puts elements of [DType.INT32] into [dst]. */
    public open fun copyDataInto(dst: IntBuffer): Unit = refuse("ints")

    /** Puts elements of [DType.INT64] into [dst]. */
    public open fun copyDataInto(dst: LongBuffer): Unit = refuse("longs")

    /** Puts elements of [DType.DOUBLE] into [dst]. */
    public open fun copyDataInto(dst: DoubleBuffer): Unit = refuse("doubles")

    /** Puts the bits of elements of [DType.HALF] into [dst]. */
    public open fun copyDataInto(dst: ShortBuffer): Unit = refuse("shorts")

    /** Puts elements of [DType.INT8] into [dst]. */
    public open fun copyDataInto(dst: ByteBuffer): Unit = refuse("bytes")

    /** The native memory itself, for internal use: nothing guards what is read of it later. */
    public abstract fun getRawDataBuffer(): Buffer

    /** Extents and type, for messages. */
    override fun toString(): String = "Tensor(${extents.contentToString()}, ${dtype()})"

    private fun refuse(wanted: String): Nothing =
        throw IllegalStateException("a tensor of ${dtype()} cannot be read as $wanted")

    /** Makers of tensors and of the buffers that they lie in. */
    public companion object {
        internal fun count(shape: LongArray): Long =
            shape.fold(1L) { product, extent ->
                require(extent >= 0) { "shape ${shape.contentToString()} has a negative extent" }
                Math.multiplyExact(product, extent)
            }

        /** A direct buffer of bytes in native order. */
        @JvmStatic
        public fun allocateByteBuffer(numElements: Int): ByteBuffer =
            ByteBuffer.allocateDirect(numElements).order(ByteOrder.nativeOrder())

        /** A direct buffer of shorts, for [DType.HALF]. */
        @JvmStatic
        public fun allocateHalfBuffer(numElements: Int): ShortBuffer =
            allocateByteBuffer(Math.multiplyExact(2, numElements)).asShortBuffer()

        /** A direct buffer of ints. */
        @JvmStatic
        public fun allocateIntBuffer(numElements: Int): IntBuffer =
            allocateByteBuffer(Math.multiplyExact(4, numElements)).asIntBuffer()

        /** A direct buffer of longs. */
        @JvmStatic
        public fun allocateLongBuffer(numElements: Int): LongBuffer =
            allocateByteBuffer(Math.multiplyExact(8, numElements)).asLongBuffer()

        /** A direct buffer of floats. */
        @JvmStatic
        public fun allocateFloatBuffer(numElements: Int): FloatBuffer =
            allocateByteBuffer(Math.multiplyExact(4, numElements)).asFloatBuffer()

        /** A direct buffer of doubles. */
        @JvmStatic
        public fun allocateDoubleBuffer(numElements: Int): DoubleBuffer =
            allocateByteBuffer(Math.multiplyExact(8, numElements)).asDoubleBuffer()

        /** A tensor of [DType.FLOAT] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlob(data: FloatBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.FLOAT)

        /** A tensor of [DType.INT32] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlob(data: IntBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.INT32)

        /** A tensor of [DType.INT64] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlob(data: LongBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.INT64)

        /** A tensor of [DType.DOUBLE] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlob(data: DoubleBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.DOUBLE)

        /** A tensor of [DType.HALF] on a direct buffer in native order that holds the bits. */
        @JvmStatic
        public fun fromBlob(data: ShortBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.HALF)

        /** A tensor of [DType.INT8] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlob(data: ByteBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.INT8)

        /** A tensor of [DType.UINT8] on a direct buffer in native order. */
        @JvmStatic
        public fun fromBlobUnsigned(data: ByteBuffer, shape: LongArray): Tensor =
            BlobTensor.checked(data, data.isDirect, data.order(), shape, DType.UINT8)

        /** A tensor of [DType.FLOAT] with a copy of the numbers. */
        @JvmStatic
        public fun fromBlob(data: FloatArray, shape: LongArray): Tensor =
            fromBlob(allocateFloatBuffer(data.size).apply { put(data) }, shape)

        /** A tensor of [DType.INT32] with a copy of the numbers. */
        @JvmStatic
        public fun fromBlob(data: IntArray, shape: LongArray): Tensor =
            fromBlob(allocateIntBuffer(data.size).apply { put(data) }, shape)

        /** A tensor of [DType.INT64] with a copy of the numbers. */
        @JvmStatic
        public fun fromBlob(data: LongArray, shape: LongArray): Tensor =
            fromBlob(allocateLongBuffer(data.size).apply { put(data) }, shape)

        /** A tensor of [DType.DOUBLE] with a copy of the numbers. */
        @JvmStatic
        public fun fromBlob(data: DoubleArray, shape: LongArray): Tensor =
            fromBlob(allocateDoubleBuffer(data.size).apply { put(data) }, shape)

        /** A tensor of [DType.HALF] with a copy of the bits. */
        @JvmStatic
        public fun fromBlob(data: ShortArray, shape: LongArray): Tensor =
            fromBlob(allocateHalfBuffer(data.size).apply { put(data) }, shape)

        /** A tensor of [DType.INT8] with a copy of the numbers. */
        @JvmStatic
        public fun fromBlob(data: ByteArray, shape: LongArray): Tensor =
            fromBlob(allocateByteBuffer(data.size).apply { put(data) }, shape)
    }
}
