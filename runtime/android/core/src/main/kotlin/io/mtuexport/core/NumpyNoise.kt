package io.mtuexport.core

/**
 * numpy's `default_rng(seed).standard_normal(count, dtype=float32)`, by the appendix of the
 * contract: PCG64, 32 bits at a time, and a ziggurat of 256 layers.
 *
 * @param entropy The seed's 32-bit words, the lowest first, no zero at the top; of 0 one zero.
 */
internal class NumpyNoise(entropy: IntArray) {
    private val incrementHigh: Long
    private val incrementLow: Long
    private var high: Long
    private var low: Long
    private var waiting = 0
    private var isWaiting = false

    init {
        val words = seedWords(entropy)
        val pairs =
            LongArray(4) { words[2 * it].toUnsigned() or (words[2 * it + 1].toLong() shl 32) }
        incrementHigh = (pairs[2] shl 1) or (pairs[3] ushr 63)
        incrementLow = (pairs[3] shl 1) or 1
        low = incrementLow + pairs[1]
        high = incrementHigh + pairs[0] + carry(low, pairs[1])
        step()
    }

    constructor(
        seed: Long
    ) : this(
        if (seed ushr 32 == 0L) intArrayOf(seed.toInt())
        else intArrayOf(seed.toInt(), (seed ushr 32).toInt())
    )

    /** The next draws. */
    fun draws(count: Int): FloatArray = FloatArray(count) { normal() }

    private fun step() {
        val product = low * MULTIPLIER_LOW
        val upper =
            multiplyHighUnsigned(low, MULTIPLIER_LOW) +
                low * MULTIPLIER_HIGH +
                high * MULTIPLIER_LOW
        low = product + incrementLow
        high = upper + incrementHigh + carry(low, incrementLow)
    }

    /** 32 bits; [Int] stands for an unsigned number. */
    fun next32(): Int {
        if (isWaiting) {
            isWaiting = false
            return waiting
        }
        step()
        val number = java.lang.Long.rotateRight(high xor low, (high ushr 58).toInt())
        waiting = (number ushr 32).toInt()
        isWaiting = true
        return number.toInt()
    }

    private fun uniform(): Float = (next32() ushr 8).toFloat() * TO_UNIT

    /** -ln(1 - u), made in float64 and rounded once, with the appendix's sign. */
    private fun log1p(): Float = -StrictMath.log1p(-uniform().toDouble()).toFloat()

    private fun normal(): Float {
        while (true) {
            val bits = next32()
            val layer = bits and 255
            val distance = bits ushr 9
            val size = distance.toFloat() * Layers.widths[layer]
            val x = if ((bits ushr 8) and 1 == 1) -size else size
            if (distance < Layers.limits[layer]) return x
            if (layer == 0) return tail(distance)
            val step = Layers.heights[layer - 1] - Layers.heights[layer]
            val height = step * uniform() + Layers.heights[layer]
            if (height.toDouble() < StrictMath.exp(-0.5 * x.toDouble() * x.toDouble())) return x
        }
    }

    /** Beyond [Layers.EDGE]. */
    private fun tail(distance: Int): Float {
        while (true) {
            val a = Layers.INVERSE_EDGE * log1p()
            val b = log1p()
            if (b + b > a * a) {
                val size = Layers.EDGE.toFloat() + a
                return if ((distance ushr 8) and 1 == 1) -size else size
            }
        }
    }

    companion object {
        private const val MULTIPLIER_HIGH = 0x2360ED051FC65DA4L
        private const val MULTIPLIER_LOW = 0x4385DF649FCCF645L
        private const val TO_UNIT = 1f / (1 shl 24)

        /** The eight words of a seed. */
        fun seedWords(entropy: IntArray): IntArray {
            var a = 0x43B0D7E5
            fun hash(value: Int): Int {
                val mixed = value xor a
                a *= 0x931E8875.toInt()
                val product = mixed * a
                return product xor (product ushr 16)
            }
            fun mix(x: Int, y: Int): Int {
                val value = 0xCA01F9DD.toInt() * x - 0x4973F715 * y
                return value xor (value ushr 16)
            }
            val pool = IntArray(POOL) { hash(entropy.getOrElse(it) { 0 }) }
            for (source in 0 until POOL) {
                for (target in 0 until POOL) {
                    if (source != target) pool[target] = mix(pool[target], hash(pool[source]))
                }
            }
            for (word in entropy.drop(POOL)) {
                for (target in 0 until POOL) pool[target] = mix(pool[target], hash(word))
            }
            var b = 0x8B51F9DD.toInt()
            return IntArray(2 * POOL) {
                val mixed = pool[it % POOL] xor b
                b *= 0x58F38DED
                val product = mixed * b
                product xor (product ushr 16)
            }
        }

        private const val POOL = 4

        private fun Int.toUnsigned(): Long = toLong() and 0xFFFFFFFFL

        /** 1 where a sum of unsigned numbers, one of them [term], has wrapped around. */
        private fun carry(sum: Long, term: Long): Long =
            if (java.lang.Long.compareUnsigned(sum, term) < 0) 1 else 0

        /** The upper half of the full product (`Math.unsignedMultiplyHigh` came with Java 18). */
        private fun multiplyHighUnsigned(one: Long, other: Long): Long {
            val mask = 0xFFFFFFFFL
            val lowest = (one and mask) * (other and mask)
            val middle = (one ushr 32) * (other and mask) + (lowest ushr 32)
            val second = (one and mask) * (other ushr 32) + (middle and mask)
            return (one ushr 32) * (other ushr 32) + (middle ushr 32) + (second ushr 32)
        }
    }
}

/** The layers of the ziggurat, by section 3 of the appendix. */
internal object Layers {
    const val EDGE = 3.654152885361009
    const val INVERSE_EDGE = 0.2736612373297583f
    private const val AREA = 0.004928673233974655
    private const val SCALE = 8388608.0
    private const val COUNT = 256

    /** k: below it a distance lies within the next layer. */
    val limits = IntArray(COUNT)

    /** w: what a distance of one is. */
    val widths: FloatArray

    /** f: the density at the edge of a layer. */
    val heights: FloatArray

    init {
        val edges = DoubleArray(COUNT)
        val densities = DoubleArray(COUNT)
        densities[0] = 1.0
        densities[255] = StrictMath.exp(-0.5 * EDGE * EDGE)
        edges[255] = EDGE
        edges[0] = AREA / densities[255]
        limits[0] = Math.round(EDGE * densities[255] / AREA * SCALE).toInt()
        for (i in 254 downTo 1) {
            edges[i] = StrictMath.sqrt(-2 * StrictMath.log(AREA / edges[i + 1] + densities[i + 1]))
            limits[i + 1] = Math.round(edges[i] / edges[i + 1] * SCALE).toInt()
            densities[i] = StrictMath.exp(-0.5 * edges[i] * edges[i])
        }
        widths = FloatArray(COUNT) { (edges[it] / SCALE).toFloat() }
        heights = FloatArray(COUNT) { densities[it].toFloat() }
    }
}
