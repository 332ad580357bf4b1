package io.mtuexport.core

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

class ExifTest {
    private val header = "Exif\u0000\u0000".toByteArray()

    @Test
    fun `the orientation is read from JPEG, PNG and WebP in both orders of bytes`() {
        for (order in listOf(ByteOrder.BIG_ENDIAN, ByteOrder.LITTLE_ENDIAN)) {
            for (orientation in 1..8) {
                val tiff = tiff(order, orientation)
                for ((kind, file) in files(tiff)) assertEquals(
                    orientation,
                    Exif.orientation(file),
                    "$kind, $order",
                )
            }
        }
    }

    @Test
    fun `an orientation of 32 bits is read as well`() {
        val tiff = tiff(ByteOrder.LITTLE_ENDIAN, 6, type = 4)
        assertEquals(6, Exif.orientation(png(tiff)))
    }

    @Test
    fun `a file without one, and one with nonsense, is upright`() {
        for (orientation in listOf(0, 9, 65535)) {
            assertEquals(1, Exif.orientation(png(tiff(ByteOrder.BIG_ENDIAN, orientation))))
        }
        assertEquals(1, Exif.orientation(png(tiff(ByteOrder.BIG_ENDIAN, 6, type = 2))))
        assertEquals(1, Exif.orientation(png(tiff(ByteOrder.BIG_ENDIAN, 6, tag = 0x0113))))
        assertEquals(1, Exif.orientation(ByteArray(0)))
        assertEquals(1, Exif.orientation("GIF89a".toByteArray()))
    }

    @Test
    fun `a file that is cut off anywhere, or whose bytes are changed, is read without an error`() {
        for ((kind, file) in files(tiff(ByteOrder.LITTLE_ENDIAN, 6))) {
            val complete =
                file.indices.firstOrNull { Exif.orientation(file.copyOf(it)) == 6 } ?: file.size
            for (length in 0 until complete) assertEquals(
                1,
                Exif.orientation(file.copyOf(length)),
                "$kind, $length",
            )
            for (at in file.indices) {
                for (value in listOf(0x00, 0x7F, 0x80, 0xFF)) {
                    val changed = file.copyOf().also { it[at] = value.toByte() }
                    assertEquals(
                        true,
                        Exif.orientation(changed) in 1..8,
                        "$kind, byte $at is $value",
                    )
                }
            }
        }
    }

    private fun files(tiff: ByteArray) =
        mapOf(
            "JPEG" to jpeg(tiff),
            "PNG" to png(tiff),
            "WebP" to webp(tiff),
            "WebP with the header of JPEG" to webp(header + tiff),
        )

    /** A directory of two entries, the second the orientation. */
    private fun tiff(
        order: ByteOrder,
        orientation: Int,
        type: Int = 3,
        tag: Int = 0x0112,
    ): ByteArray {
        val buffer = ByteBuffer.allocate(8 + 2 + 2 * 12 + 4).order(order)
        buffer
            .put((if (order == ByteOrder.BIG_ENDIAN) "MM" else "II").toByteArray())
            .putShort(42)
            .putInt(8)
        buffer.putShort(2)
        buffer.putShort(0x0100).putShort(4).putInt(1).putInt(640)
        buffer.putShort(tag.toShort()).putShort(type.toShort()).putInt(1)
        if (type == 4) buffer.putInt(orientation)
        else buffer.putShort(orientation.toShort()).putShort(0)
        buffer.putInt(0)
        return buffer.array()
    }

    /** JFIF's segment, EXIF, a fill byte, a table, then the scan. */
    private fun jpeg(tiff: ByteArray) = bytes {
        write(byteArrayOf(-1, 0xD8.toByte()))
        segment(0xE0, "JFIF\u0000".toByteArray())
        write(0xFF)
        segment(0xE1, header + tiff)
        segment(0xDB, ByteArray(5))
        segment(0xDA, ByteArray(5))
    }

    private fun ByteArrayOutputStream.segment(marker: Int, data: ByteArray) {
        write(
            byteArrayOf(
                -1,
                marker.toByte(),
                ((data.size + 2) shr 8).toByte(),
                (data.size + 2).toByte(),
            )
        )
        write(data)
    }

    private fun png(tiff: ByteArray) = bytes {
        write(byteArrayOf(0x89.toByte(), 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A))
        for ((name, data) in
            listOf("IHDR" to ByteArray(13), "eXIf" to tiff, "IEND" to ByteArray(0))) {
            write(number(data.size, ByteOrder.BIG_ENDIAN))
            write(name.toByteArray())
            write(data)
            write(ByteArray(4))
        }
    }

    /** A chunk of odd length with its padding, then EXIF. */
    private fun webp(exif: ByteArray) = bytes {
        write("RIFF\u0000\u0000\u0000\u0000WEBP".toByteArray())
        write("VP8 ".toByteArray() + number(3, ByteOrder.LITTLE_ENDIAN) + ByteArray(4))
        write("EXIF".toByteArray() + number(exif.size, ByteOrder.LITTLE_ENDIAN) + exif)
    }

    private fun number(value: Int, order: ByteOrder) =
        ByteBuffer.allocate(4).order(order).putInt(value).array()

    private fun bytes(write: ByteArrayOutputStream.() -> Unit) =
        ByteArrayOutputStream().apply(write).toByteArray()
}
