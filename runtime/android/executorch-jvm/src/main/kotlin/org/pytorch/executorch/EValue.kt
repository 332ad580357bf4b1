package org.pytorch.executorch

/**
 * A value that a method takes or gives: a tensor, a number, a string, or none.
 *
 * `is...` asks for the kind; `to...` gives the value and throws IllegalStateException where it is
 * of another kind.
 */
public class EValue private constructor(private val value: Any?) {
    /** Whether it holds nothing. */
    public val isNone: Boolean
        get() = value == null

    /** Whether it is a tensor. */
    public val isTensor: Boolean
        get() = value is Tensor

    /** Whether it is a truth value. */
    public val isBool: Boolean
        get() = value is Boolean

    /** Whether it is a whole number. */
    public val isInt: Boolean
        get() = value is Long

    /** Whether it is a floating-point number. */
    public val isDouble: Boolean
        get() = value is Double

    /** Whether it is a string. */
    public val isString: Boolean
        get() = value is String

    /** The tensor. */
    public fun toTensor(): Tensor = value as? Tensor ?: refuse("a tensor")

    /** The truth value. */
    public fun toBool(): Boolean = value as? Boolean ?: refuse("a Bool")

    /** The whole number. */
    public fun toInt(): Long = value as? Long ?: refuse("an Int")

    /** The floating-point number. */
    public fun toDouble(): Double = value as? Double ?: refuse("a Double")

    /** The string. */
    public fun toStr(): String = value as? String ?: refuse("a String")

    /** Kind and value, for messages. */
    override fun toString(): String = "EValue(${value ?: "None"})"

    private fun refuse(wanted: String): Nothing =
        throw IllegalStateException("the value is $kind, not $wanted")

    internal val kind: String
        get() =
            when (value) {
                null -> "None"
                is Tensor -> "a tensor"
                is Boolean -> "a Bool"
                is Long -> "an Int"
                is Double -> "a Double"
                else -> "a String"
            }

    /** Makers of values. */
    public companion object {
        private val NONE = EValue(null)

        /** Nothing, for an optional input. */
        @JvmStatic public fun optionalNone(): EValue = NONE

        /** A tensor. */
        @JvmStatic public fun from(tensor: Tensor): EValue = EValue(tensor)

        /** A truth value. */
        @JvmStatic public fun from(value: Boolean): EValue = EValue(value)

        /** A whole number. */
        @JvmStatic public fun from(value: Long): EValue = EValue(value)

        /** A floating-point number. */
        @JvmStatic public fun from(value: Double): EValue = EValue(value)

        /** A string. */
        @JvmStatic public fun from(value: String): EValue = EValue(value)
    }
}
