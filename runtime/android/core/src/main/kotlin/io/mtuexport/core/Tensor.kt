package io.mtuexport.core

/** An array, row-major, of float32 or int32. The arrays are not copied: who hands one in lets go of it. */
public sealed class Tensor {
    /** Extents, the outermost first. */
    public abstract val shape: IntArray

    /**
     * float32.
     *
     * @property data The numbers, row-major.
     */
    public class Floats(override val shape: IntArray, public val data: FloatArray) : Tensor() {
        init {
            require(data.size.toLong() == elements(shape)) { "${data.size} numbers for ${shown(shape)}" }
        }
    }

    /**
     * int32: ids of tokens.
     *
     * @property data The numbers, row-major.
     */
    public class Ints(override val shape: IntArray, public val data: IntArray) : Tensor() {
        init {
            require(data.size.toLong() == elements(shape)) { "${data.size} numbers for ${shown(shape)}" }
        }
    }

    /** Helpers of shapes. */
    public companion object {
        /** The number of elements of a shape: 1 of an empty one. */
        @JvmStatic
        public fun elements(shape: IntArray): Long = shape.fold(1L) { product, extent ->
            Math.multiplyExact(product, extent.toLong())
        }

        /** A shape as people read it: `[1, 4, 64, 64]`. */
        @JvmStatic
        public fun shown(shape: IntArray): String = shape.joinToString(", ", "[", "]")
    }
}
