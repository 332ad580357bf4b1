package io.mtuexport.core

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor

// Pictures from raw pixels to tensors, I1 to I7 of the contract, and the way back.

private const val MOST_PIXELS = 100_000_000L

/** Levels of 0 to 255, row by row, the channels of a pixel side by side. */
private class Levels(val width: Int, val height: Int, val channels: Int, val data: ByteArray) {
    fun copyPixel(x: Int, y: Int, into: ByteArray, at: Int) {
        val from = channels * (y * width + x)
        for (channel in 0 until channels) into[at + channel] = data[from + channel]
    }
}

/** Refuses a picture that [fitted] could not fit (I1). */
internal fun requireFittable(picture: RgbaImage, name: String) {
    val pixels = picture.width.toLong() * picture.height
    if (picture.width < 1 || picture.height < 1 || pixels > MOST_PIXELS) {
        refuse(
            "picture ${quoted(name)} has ${picture.width} x ${picture.height} pixels: 1 to $MOST_PIXELS are legal"
        )
    }
    if (picture.pixels.size.toLong() != 4 * pixels) {
        refuse(
            "picture ${quoted(name)} of ${picture.width} x ${picture.height} has ${picture.pixels.size} bytes, not 4 a pixel"
        )
    }
    if (picture.orientation !in 1..8) {
        refuse(
            "picture ${quoted(name)} has the orientation ${picture.orientation}",
            (1..8).map { "$it" },
        )
    }
}

/** A picture at the size of a bundle: float32 [1, 3, H, W], or [1, 1, H, W] of grey and masks. */
internal fun fitted(
    picture: RgbaImage,
    input: PictureInput,
    height: Int,
    width: Int,
): Tensor.Floats {
    val upright = upright(picture)
    if (input.kind == PictureKind.MASK) {
        val grey = nearest(greyOf(upright), height, width)
        return planes(grey) { if (it >= 128) 1f else 0f }
    }
    val rgb =
        if (input.filter == Filter.NEAREST) nearest(upright, height, width)
        else lanczos(upright, height, width)
    val levels = if (input.kind == PictureKind.GREY) greyOf(rgb) else rgb
    return when (input.range) {
        Range.SIGNED -> planes(levels) { it / 127.5f - 1f }
        Range.UNIT -> planes(levels) { it / 255f }
        Range.LEVELS -> planes(levels) { it.toFloat() }
    }
}

/** The 8-bit picture of [1, 3, H, W] in -1..1; what is beyond is clipped. */
internal fun rgbOf(picture: Tensor.Floats): RgbImage {
    val (height, width) = picture.shape.drop(2)
    val count = height * width
    val pixels =
        ByteArray(3 * count) {
            val value = picture.data[it % 3 * count + it / 3].coerceIn(-1f, 1f)
            Math.rint((value.toDouble() + 1) * 127.5).toInt().toByte()
        }
    return RgbImage(width, height, pixels)
}

/** [1, channels, H, W]: each level as a number. */
private inline fun planes(levels: Levels, number: (Int) -> Float): Tensor.Floats {
    val count = levels.width * levels.height
    val data = FloatArray(levels.channels * count)
    for (channel in 0 until levels.channels) {
        for (i in 0 until count) {
            data[channel * count + i] =
                number(levels.data[i * levels.channels + channel].toInt() and 0xFF)
        }
    }
    return Tensor.Floats(intArrayOf(1, levels.channels, levels.height, levels.width), data)
}

/** I2 to I4: RGB on white, turned as the EXIF orientation says. */
private fun upright(picture: RgbaImage): Levels {
    val orientation = picture.orientation
    val isSwapped = orientation >= 5
    val isFromRight = orientation in intArrayOf(2, 3, 7, 8)
    val isFromBelow = orientation in intArrayOf(3, 4, 6, 7)
    val width = if (isSwapped) picture.height else picture.width
    val height = if (isSwapped) picture.width else picture.height
    val rgb = ByteArray(3 * width * height)
    var at = 0
    for (y in 0 until height) {
        for (x in 0 until width) {
            val across = if (isSwapped) y else x
            val down = if (isSwapped) x else y
            val column = if (isFromRight) picture.width - 1 - across else across
            val line = if (isFromBelow) picture.height - 1 - down else down
            val from = 4 * (line * picture.width + column)
            val alpha = picture.pixels[from + 3].toInt() and 0xFF
            for (channel in 0 until 3) {
                val level = picture.pixels[from + channel].toInt() and 0xFF
                // floor((v·a + 255·(255 - a)) / 255 + 0.5), in whole numbers
                rgb[at++] = ((2 * (level * alpha + 255 * (255 - alpha)) + 255) / 510).toByte()
            }
        }
    }
    return Levels(width, height, 3, rgb)
}

private fun greyOf(rgb: Levels): Levels {
    val data = rgb.data
    val grey =
        ByteArray(rgb.width * rgb.height) {
            val red = data[3 * it].toInt() and 0xFF
            val green = data[3 * it + 1].toInt() and 0xFF
            val blue = data[3 * it + 2].toInt() and 0xFF
            ((19595 * red + 38470 * green + 7471 * blue + 32768) shr 16).toByte()
        }
    return Levels(rgb.width, rgb.height, 1, grey)
}

// ------------------------------------------------------------------------------- the nearest pixel

/** I7's rectangle and pixels, in whole numbers. */
private fun nearest(levels: Levels, height: Int, width: Int): Levels {
    val isAcross = levels.width.toLong() * height <= levels.height.toLong() * width
    val p = (if (isAcross) levels.width else levels.height).toLong()
    val q = (if (isAcross) width else height).toLong()
    val columns = places(levels.width, width, p, q)
    val lines = places(levels.height, height, p, q)
    val data = ByteArray(height * width * levels.channels)
    var at = 0
    for (line in lines) {
        for (column in columns) {
            levels.copyPixel(column, line, data, at)
            at += levels.channels
        }
    }
    return Levels(width, height, levels.channels, data)
}

/** Which of [side] pixels is nearest to each of [count], p / q apart and centred. */
private fun places(side: Int, count: Int, p: Long, q: Long) =
    IntArray(count) { ((side * q - count * p + (2 * it + 1) * p) / (2 * q)).toInt() }

// --------------------------------------------------------------------------------------- Lanczos

/** What the pixels from [first] on weigh; the sum is 1. */
private class Weights(val first: Int, val values: DoubleArray)

/** I5: Lanczos, one axis after the other, each to 8 bits. */
private fun lanczos(levels: Levels, height: Int, width: Int): Levels {
    val scale = minOf(levels.width.toDouble() / width, levels.height.toDouble() / height)
    val across = weights(levels.width, width, scale)
    val down = weights(levels.height, height, scale)
    val isColumnsFirst = levels.height - height > 2 * maxOf(0, levels.width - width)
    return if (isColumnsFirst) {
        resampledAcross(resampledDown(levels, down), across)
    } else {
        resampledDown(resampledAcross(levels, across), down)
    }
}

private fun weights(side: Int, count: Int, scale: Double): List<Weights> {
    val begin = (side - count * scale) / 2
    val support = maxOf(1.0, scale)
    return List(count) { i ->
        val centre = begin + (i + 0.5) * scale
        val first = maxOf(0, floor(centre - 3 * support - 0.5).toInt())
        val last = minOf(side - 1, ceil(centre + 3 * support).toInt())
        val values = DoubleArray(last - first + 1) { kernel((first + it + 0.5 - centre) / support) }
        val sum = values.sum()
        Weights(first, DoubleArray(values.size) { values[it] / sum })
    }
}

private fun kernel(t: Double) = if (abs(t) < 3) sinc(t) * sinc(t / 3) else 0.0

/** By [StrictMath], whose last digits are those of every machine. */
private fun sinc(t: Double) = if (t == 0.0) 1.0 else StrictMath.sin(PI * t) / (PI * t)

private fun resampledAcross(levels: Levels, across: List<Weights>): Levels {
    val channels = levels.channels
    val data = levels.data
    val result = ByteArray(across.size * levels.height * channels)
    var at = 0
    for (y in 0 until levels.height) {
        for (weights in across) {
            for (channel in 0 until channels) {
                var from = channels * (y * levels.width + weights.first) + channel
                var sum = 0.0
                for (weight in weights.values) {
                    sum += weight * (data[from].toInt() and 0xFF)
                    from += channels
                }
                result[at++] = toLevel(sum)
            }
        }
    }
    return Levels(across.size, levels.height, channels, result)
}

private fun resampledDown(levels: Levels, down: List<Weights>): Levels {
    val length = levels.width * levels.channels
    val result = ByteArray(length * down.size)
    val sums = DoubleArray(length)
    down.forEachIndexed { y, weights ->
        sums.fill(0.0)
        weights.values.forEachIndexed { j, weight ->
            val from = (weights.first + j) * length
            for (i in 0 until length) sums[i] += weight * (levels.data[from + i].toInt() and 0xFF)
        }
        for (i in 0 until length) result[y * length + i] = toLevel(sums[i])
    }
    return Levels(levels.width, down.size, levels.channels, result)
}

private fun toLevel(value: Double) = floor(value + 0.5).coerceIn(0.0, 255.0).toInt().toByte()
