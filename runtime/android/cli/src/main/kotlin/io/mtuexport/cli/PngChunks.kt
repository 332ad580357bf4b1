package io.mtuexport.cli

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer

/** The chunks of a PNG file. */
internal object PngChunks {
    private const val SIGNATURE = 8
    private const val AROUND = 12 // length, name and checksum of a chunk
    private val NEEDED = setOf("IHDR", "PLTE", "tRNS", "IDAT", "IEND")

    /**
     * The file with nothing but what its pixels need. Java's decoder reads the others too: it fails
     * where one is damaged, and inflates compressed text of any size.
     *
     * What is no chunk stays for the decoder to refuse.
     */
    fun needed(file: ByteArray): ByteArray {
        val all = ByteBuffer.wrap(file)
        val kept = ByteArrayOutputStream(file.size)
        kept.write(file, 0, SIGNATURE)
        var at = SIGNATURE
        while (file.size - at >= AROUND) {
            val length = all.getInt(at)
            if (length < 0 || length > file.size - at - AROUND) break
            val name = String(file, at + 4, 4, Charsets.ISO_8859_1)
            if (name in NEEDED) kept.write(file, at, AROUND + length)
            at += AROUND + length
            if (name == "IEND") return kept.toByteArray()
        }
        kept.write(file, at, file.size - at)
        return kept.toByteArray()
    }
}
