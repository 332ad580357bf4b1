package io.mtuexport.sample

import io.mtuexport.core.RgbaImage

/** What a finger has drawn over a picture: white where it is to be painted anew. */
internal class Mask(val width: Int, val height: Int) {
    private val isWhite = BooleanArray(width * height)

    /** Whether nothing is drawn. */
    val isEmpty: Boolean
        get() = isWhite.none { it }

    /** Whether a pixel is to be painted anew. */
    operator fun get(x: Int, y: Int): Boolean = isWhite[y * width + x]

    /** Draws a line with round ends, of twice [radius] pixels; parts outside do not count. */
    fun stroke(fromX: Float, fromY: Float, toX: Float, toY: Float, radius: Float) {
        val left = maxOf(0, Math.floor((minOf(fromX, toX) - radius).toDouble()).toInt())
        val right = minOf(width - 1, Math.ceil((maxOf(fromX, toX) + radius).toDouble()).toInt())
        val top = maxOf(0, Math.floor((minOf(fromY, toY) - radius).toDouble()).toInt())
        val bottom = minOf(height - 1, Math.ceil((maxOf(fromY, toY) + radius).toDouble()).toInt())
        val alongX = toX - fromX
        val alongY = toY - fromY
        val length = alongX * alongX + alongY * alongY
        for (y in top..bottom) for (x in left..right) {
            val part =
                if (length == 0f) 0f else ((x - fromX) * alongX + (y - fromY) * alongY) / length
            val near = part.coerceIn(0f, 1f)
            val dx = x - fromX - near * alongX
            val dy = y - fromY - near * alongY
            if (dx * dx + dy * dy <= radius * radius) isWhite[y * width + x] = true
        }
    }

    /** Takes everything back. */
    fun clear(): Unit = isWhite.fill(false)

    /** White on black, as the contract takes masks. */
    fun image(): RgbaImage {
        val pixels =
            ByteArray(4 * isWhite.size) { at -> if (at % 4 == 3 || isWhite[at / 4]) -1 else 0 }
        return RgbaImage(width, height, pixels)
    }
}
