package io.mtuexport.android

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.net.Uri
import io.mtuexport.core.Exif
import io.mtuexport.core.MtuException
import io.mtuexport.core.RgbImage
import io.mtuexport.core.RgbaImage
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer

/** Pictures of Android as those of the contract, and back. */
public object Pictures {
    /** The most pixels of a picture. */
    public const val MOST_PIXELS: Long = 100_000_000

    /** The most bytes of a picture's file. */
    public const val MOST_BYTES: Int = 256_000_000

    /**
     * The picture behind [uri], as its file has it: no alpha multiplied in, no density, and turned
     * by nobody, as its EXIF orientation goes with it. Colours of a profile that Android's bitmaps
     * cannot hold are converted to sRGB by the system.
     *
     * Blocks. Needs four bytes of the heap and four of native memory a pixel.
     *
     * @throws MtuException.RequestRefused Where it is no picture that Android decodes, or too
     *   large.
     * @throws MtuException.OutOfMemory Where the heap cannot hold it.
     * @throws IOException Where it cannot be read.
     */
    @Throws(IOException::class)
    public fun read(resolver: ContentResolver, uri: Uri): RgbaImage {
        val stream = resolver.openInputStream(uri) ?: throw IOException("$uri cannot be opened")
        return decode(inMemory { stream.use { readAll(it, MOST_BYTES) } })
    }

    /**
     * As [read], of a file's bytes.
     *
     * @throws MtuException.RequestRefused Where it is no picture that Android decodes, or too
     *   large.
     * @throws MtuException.OutOfMemory Where the heap cannot hold it.
     */
    public fun decode(file: ByteArray): RgbaImage = inMemory { decoded(file) }

    private fun decoded(file: ByteArray): RgbaImage {
        val size = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(file, 0, file.size, size)
        requireSize(size.outWidth, size.outHeight)
        val options =
            BitmapFactory.Options().apply {
                inPreferredConfig = Bitmap.Config.ARGB_8888
                inPremultiplied = false
                inScaled = false
            }
        val bitmap =
            BitmapFactory.decodeByteArray(file, 0, file.size, options)
                ?: throw MtuException.RequestRefused(
                    "the file is no picture that this device decodes"
                )
        try {
            return toRgbaImage(bitmap, Exif.orientation(file))
        } finally {
            bitmap.recycle()
        }
    }

    /**
     * A bitmap's pixels. Alpha that is multiplied in is divided out again, which does not bring
     * back the last bits of transparent pixels: prefer [decode] to a bitmap of a decoder's
     * defaults.
     *
     * @param orientation That of EXIF, 1 to 8, which the bitmap does not know.
     * @throws MtuException.RequestRefused Where it has more than [MOST_PIXELS].
     * @throws MtuException.OutOfMemory Where the heap cannot hold its pixels.
     */
    @JvmOverloads
    public fun toRgbaImage(bitmap: Bitmap, orientation: Int = 1): RgbaImage = inMemory {
        pixelsOf(bitmap, orientation)
    }

    private fun pixelsOf(bitmap: Bitmap, orientation: Int): RgbaImage {
        requireSize(bitmap.width, bitmap.height)
        val plain =
            if (bitmap.config == Bitmap.Config.ARGB_8888) bitmap
            else bitmap.copy(Bitmap.Config.ARGB_8888, false)
        val isPacked = plain.rowBytes == 4 * plain.width
        val pixels = ByteArray(4 * plain.width * plain.height)
        if (isPacked) {
            plain.copyPixelsToBuffer(
                ByteBuffer.wrap(pixels)
            ) // bytes in memory: red, green, blue, alpha
        } else {
            val padded = ByteBuffer.allocate(plain.rowBytes * plain.height)
            plain.copyPixelsToBuffer(padded)
            unpad(padded.array(), plain.rowBytes, pixels, 4 * plain.width)
        }
        if (plain.hasAlpha() && plain.isPremultiplied) divideOutAlpha(pixels)
        if (!plain.hasAlpha()) for (at in 3 until pixels.size step 4) pixels[at] = -1
        val image = RgbaImage(plain.width, plain.height, pixels, orientation)
        if (plain !== bitmap) plain.recycle()
        return image
    }

    /** A bitmap of [Bitmap.Config.ARGB_8888] with the picture's pixels, opaque. */
    public fun toBitmap(image: RgbImage): Bitmap {
        val bitmap = Bitmap.createBitmap(image.width, image.height, Bitmap.Config.ARGB_8888)
        bitmap.copyPixelsFromBuffer(ByteBuffer.wrap(opaque(image.pixels)))
        bitmap.setHasAlpha(false)
        return bitmap
    }
}

/** What [work] returns; a full heap is an error of this library's. */
internal inline fun <T> inMemory(work: () -> T): T =
    try {
        work()
    } catch (error: OutOfMemoryError) {
        throw MtuException.OutOfMemory("the picture", 0, error)
    }

/** Refuses a picture of no pixels, or of too many, by its header. */
internal fun requireSize(width: Int, height: Int) {
    if (width <= 0 || height <= 0) {
        throw MtuException.RequestRefused("the file is no picture that this device decodes")
    }
    if (width.toLong() * height > Pictures.MOST_PIXELS) {
        throw MtuException.RequestRefused(
            "a picture of $width x $height pixels; 100,000,000 are the most"
        )
    }
}

internal fun readAll(stream: InputStream, most: Int): ByteArray {
    val bytes = ByteArrayOutputStream()
    val piece = ByteArray(1 shl 16)
    while (true) {
        val count = stream.read(piece)
        if (count < 0) return bytes.toByteArray()
        if (bytes.size() > most - count) {
            throw MtuException.RequestRefused("the picture's file has more than $most bytes")
        }
        bytes.write(piece, 0, count)
    }
}

internal fun unpad(from: ByteArray, stride: Int, to: ByteArray, width: Int) {
    for (line in 0 until to.size / width) from.copyInto(
        to,
        line * width,
        line * stride,
        line * stride + width,
    )
}

/** Of each pixel red, green and blue over alpha, rounded, halves up; black where alpha is 0. */
internal fun divideOutAlpha(pixels: ByteArray) {
    for (pixel in pixels.indices step 4) {
        val alpha = pixels[pixel + 3].toInt() and 255
        if (alpha == 255) continue
        for (channel in pixel until pixel + 3) {
            val level = pixels[channel].toInt() and 255
            pixels[channel] =
                if (alpha == 0) 0 else minOf(255, (255 * level + alpha / 2) / alpha).toByte()
        }
    }
}

internal fun opaque(rgb: ByteArray): ByteArray {
    val pixels = ByteArray(rgb.size / 3 * 4)
    for (pixel in 0 until rgb.size / 3) {
        rgb.copyInto(pixels, 4 * pixel, 3 * pixel, 3 * pixel + 3)
        pixels[4 * pixel + 3] = -1
    }
    return pixels
}
