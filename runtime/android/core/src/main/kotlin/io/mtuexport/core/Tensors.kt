@file:JvmName("Tensors")

package io.mtuexport.core

import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.sqrt

// Arithmetic of tensors as the contract rounds it.

/**
 * 20·log10(max|reference| / rmse) in dB, of float32 tensors of any shape.
 *
 * Positive infinity of equal tensors; negative infinity where the shapes differ, where [actual] is
 * not finite, and where the reference is 0 throughout and [actual] is not.
 */
public fun psnrDb(reference: Tensor.Floats, actual: Tensor.Floats): Double {
    if (!reference.shape.contentEquals(actual.shape) || !actual.isFinite())
        return Double.NEGATIVE_INFINITY
    var peak = 0.0
    var sum = 0.0
    for (i in reference.data.indices) {
        val value = reference.data[i].toDouble()
        val error = value - actual.data[i]
        peak = maxOf(peak, abs(value))
        sum += error * error
    }
    if (sum == 0.0) return Double.POSITIVE_INFINITY
    return if (peak > 0) 20 * log10(peak / sqrt(sum / reference.data.size))
    else Double.NEGATIVE_INFINITY
}

/**
 * The number of elements of a shape.
 *
 * @throws OutOfMemoryError where no array holds so many: a manifest may name such a shape.
 */
internal fun countOf(shape: IntArray): Int {
    if (0 in shape) return 0
    val count = shape.fold(1L) { product, extent -> minOf(product * extent, LARGEST_COUNT + 1L) }
    if (count > LARGEST_COUNT) throw OutOfMemoryError("no array holds ${Tensor.shown(shape)}")
    return count.toInt()
}

private const val LARGEST_COUNT = Int.MAX_VALUE

internal fun filled(shape: IntArray, value: Float): Tensor.Floats =
    Tensor.Floats(shape, FloatArray(countOf(shape)).apply { fill(value) })

/** One float32 product, the number rounded first. */
internal fun Tensor.Floats.times(number: Double): Tensor.Floats {
    val factor = number.toFloat()
    return Tensor.Floats(shape, FloatArray(data.size) { data[it] * factor })
}

/** One float32 quotient, the number rounded first. */
internal fun Tensor.Floats.dividedBy(number: Double): Tensor.Floats {
    val divisor = number.toFloat()
    return Tensor.Floats(shape, FloatArray(data.size) { data[it] / divisor })
}

internal fun Tensor.Floats.isFinite(): Boolean = data.all { it.isFinite() }

/** [1, ...]: one entry of the first axis. */
internal fun Tensor.Floats.entry(index: Int): Tensor.Floats {
    val one = shape.copyOf().also { it[0] = 1 }
    val length = countOf(one)
    return Tensor.Floats(one, data.copyOfRange(index * length, (index + 1) * length))
}

/** Tensors of one type, side by side along an axis. */
internal fun joined(tensors: List<Tensor>, axis: Int): Tensor {
    val first = tensors.first()
    if (tensors.size == 1) return first
    val shape =
        first.shape.copyOf().also { it[axis] = tensors.sumOf { tensor -> tensor.shape[axis] } }
    return when (first) {
        is Tensor.Floats ->
            FloatArray(countOf(shape)).let { data ->
                copySideBySide(tensors, axis, data) { (it as Tensor.Floats).data }
                Tensor.Floats(shape, data)
            }
        is Tensor.Ints ->
            IntArray(countOf(shape)).let { data ->
                copySideBySide(tensors, axis, data) { (it as Tensor.Ints).data }
                Tensor.Ints(shape, data)
            }
    }
}

private inline fun copySideBySide(
    tensors: List<Tensor>,
    axis: Int,
    into: Any,
    dataOf: (Tensor) -> Any,
) {
    val blocks = countOf(tensors.first().shape.copyOfRange(0, axis))
    var at = 0
    for (block in 0 until blocks) {
        for (tensor in tensors) {
            val length = countOf(tensor.shape.copyOfRange(axis, tensor.shape.size))
            System.arraycopy(dataOf(tensor), block * length, into, at, length)
            at += length
        }
    }
}

/** Sums in float64, to be rounded once. */
internal class Sum(private val shape: IntArray) {
    private val sums = DoubleArray(countOf(shape))

    fun add(factor: Double, tensor: Tensor.Floats) {
        for (i in sums.indices) sums[i] += factor * tensor.data[i]
    }

    fun rounded(): Tensor.Floats =
        Tensor.Floats(shape, FloatArray(sums.size) { sums[it].toFloat() })
}
