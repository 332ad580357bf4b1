package org.pytorch.executorch

/**
 * Type of a tensor's elements.
 *
 * @property jniCode The number that ExecuTorch's `scalar_type.h` gives it.
 */
public enum class DType(@JvmField public val jniCode: Int, internal val bytes: Int) {
    /** Unsigned, 8 bits. */
    UINT8(0, 1),

    /** Signed, 8 bits. */
    INT8(1, 1),

    /** Signed, 16 bits. */
    INT16(2, 2),

    /** Signed, 32 bits. */
    INT32(3, 4),

    /** Signed, 64 bits. */
    INT64(4, 8),

    /** IEEE 754, 16 bits. */
    HALF(5, 2),

    /** IEEE 754, 32 bits. */
    FLOAT(6, 4),

    /** IEEE 754, 64 bits. */
    DOUBLE(7, 8),

    /** 0 or 1 in a byte. */
    BOOL(11, 1),

    /** The upper half of a 32-bit number. */
    BFLOAT16(15, 2);

    /** The types by code. */
    public companion object {
        /** The type of [jniCode]; throws IllegalArgumentException for one that is not listed. */
        @JvmStatic
        public fun fromJniCode(jniCode: Int): DType =
            values().firstOrNull { it.jniCode == jniCode }
                ?: throw IllegalArgumentException("no type of tensors has code $jniCode")
    }
}
