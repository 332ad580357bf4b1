package io.mtuexport.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The orientation that a camera wrote into a picture's file. */
public object Exif {
    private const val UPRIGHT = 1
    private const val ORIENTATION = 0x0112
    private val HEADER = "Exif\u0000\u0000".toByteArray(Charsets.US_ASCII)
    private val PNG = byteArrayOf(0x89.toByte(), 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A)

    /**
     * 1 to 8, from the EXIF data of a JPEG (APP1), PNG (`eXIf`) or WebP (`EXIF`); 1 where there is
     * none, where it is damaged and in any other file.
     *
     * @param file The bytes of the file.
     */
    @JvmStatic
    public fun orientation(file: ByteArray): Int {
        val tiff =
            when {
                file.startsWith(0, byteArrayOf(0xFF.toByte(), 0xD8.toByte())) -> ofJpeg(file)
                file.startsWith(0, PNG) -> ofPng(file)
                file.startsWith(0, "RIFF".ascii()) && file.startsWith(8, "WEBP".ascii()) ->
                    ofWebp(file)
                else -> null
            }
        return tiff?.let(::ofTiff)?.takeIf { it in 1..8 } ?: UPRIGHT
    }

    /** The segment APP1 with EXIF, before the picture's own data. */
    private fun ofJpeg(file: ByteArray): ByteBuffer? {
        var at = 2
        while (at + 4 <= file.size && file.unsigned(at) == 0xFF) {
            val marker = file.unsigned(at + 1)
            if (marker == 0xFF) { // padding
                at += 1
                continue
            }
            if (marker == 0xDA || marker == 0xD9) return null
            val hasLength = marker != 0x01 && marker !in 0xD0..0xD7
            val length =
                if (hasLength) (file.unsigned(at + 2) shl 8) or file.unsigned(at + 3) else 0
            if (marker == 0xE1 && file.startsWith(at + 4, HEADER)) {
                return file.piece(at + 4 + HEADER.size, length - 2L - HEADER.size)
            }
            at += 2 + length
        }
        return null
    }

    private fun ofPng(file: ByteArray): ByteBuffer? {
        var at = PNG.size.toLong()
        while (at + 12 <= file.size) {
            val length = file.number(at.toInt(), ByteOrder.BIG_ENDIAN)
            if (file.startsWith(at.toInt() + 4, "eXIf".ascii()))
                return file.piece(at.toInt() + 8, length)
            at += 12 + length
        }
        return null
    }

    /** The chunk's data, with or without the header that JPEG needs. */
    private fun ofWebp(file: ByteArray): ByteBuffer? {
        var at = 12L
        while (at + 8 <= file.size) {
            val length = file.number(at.toInt() + 4, ByteOrder.LITTLE_ENDIAN)
            if (file.startsWith(at.toInt(), "EXIF".ascii())) {
                val begin = at.toInt() + 8
                val skipped = if (file.startsWith(begin, HEADER)) HEADER.size else 0
                return file.piece(begin + skipped, length - skipped)
            }
            at += 8 + length + length % 2
        }
        return null
    }

    /** The tag of the first directory. */
    private fun ofTiff(tiff: ByteBuffer): Int? {
        if (tiff.remaining() < 8) return null
        tiff.order(
            when (tiff.getShort(0).toInt()) {
                0x4949 -> ByteOrder.LITTLE_ENDIAN
                0x4D4D -> ByteOrder.BIG_ENDIAN
                else -> return null
            }
        )
        val directory = tiff.getInt(4).toLong() and 0xFFFFFFFFL
        if (tiff.getShort(2).toInt() != 42 || directory + 2 > tiff.limit()) return null
        val count = tiff.getShort(directory.toInt()).toInt() and 0xFFFF
        for (entry in 0 until count) {
            val at = directory + 2 + 12L * entry
            if (at + 12 > tiff.limit()) return null
            if (tiff.getShort(at.toInt()).toInt() and 0xFFFF != ORIENTATION) continue
            return when (tiff.getShort(at.toInt() + 2).toInt()) {
                3 -> tiff.getShort(at.toInt() + 8).toInt()
                4 -> tiff.getInt(at.toInt() + 8)
                else -> null
            }
        }
        return null
    }

    private fun String.ascii() = toByteArray(Charsets.US_ASCII)

    private fun ByteArray.unsigned(at: Int) = this[at].toInt() and 0xFF

    private fun ByteArray.number(at: Int, order: ByteOrder): Long =
        ByteBuffer.wrap(this).order(order).getInt(at).toLong() and 0xFFFFFFFFL

    private fun ByteArray.startsWith(at: Int, prefix: ByteArray): Boolean =
        at + prefix.size <= size && prefix.indices.all { this[at + it] == prefix[it] }

    private fun ByteArray.piece(at: Int, length: Long): ByteBuffer? =
        if (length < 0 || at + length > size) null
        else ByteBuffer.wrap(this, at, length.toInt()).slice()
}
