package io.mtuexport.cli

import io.mtuexport.core.Tensor
import java.io.DataInputStream
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Reads arrays that numpy has saved. */
internal object Npy {
    private val MAGIC = byteArrayOf(0x93.toByte()) + "NUMPY".toByteArray()
    private val HEADER =
        Regex(
            "\\{\\s*'descr':\\s*'([^']*)',\\s*'fortran_order':\\s*(True|False),\\s*" +
                "'shape':\\s*\\(((?:[0-9]+,?\\s*)*)\\),?\\s*\\}\\s*"
        )
    private const val LONGEST_HEADER = 10_000
    private val ARCHIVE = byteArrayOf(0x50, 0x4B)

    /**
     * The finite float32 array of a file; [name] begins the line of a [Refusal].
     *
     * Only what numpy writes of float32 in little-endian order is taken, rows first or columns
     * first.
     */
    fun read(name: String, file: File): Tensor.Floats {
        if (file.exists() && !file.isFile) throw Refusal("$name is not a file")
        if (!file.exists()) throw Refusal("$name: No such file or directory")
        val tensor =
            try {
                DataInputStream(file.inputStream().buffered()).use { body(name, it, file.length()) }
            } catch (error: IOException) {
                throw Refusal("$name: ${reasonOf(error)}", cause = error)
            }
        if (!tensor.data.all { it - it == 0f }) throw Refusal("$name holds NaN or Inf")
        return tensor
    }

    private fun body(name: String, stream: DataInputStream, size: Long): Tensor.Floats {
        val start = ByteArray(Math.min(8, size).toInt()).also(stream::readFully)
        if (start.startsWith(ARCHIVE)) throw Refusal("$name must hold one float32 array")
        if (start.size < 8 || !start.startsWith(MAGIC) || start[6] !in 1..3) damaged(name)
        val width = if (start[6] == 1.toByte()) 2 else 4
        if (size < 8 + width) damaged(name)
        val length =
            (0 until width).fold(0L) { sum, place ->
                sum or (stream.read().toLong() shl (8 * place))
            }
        if (length > Math.min(size - 8 - width, LONGEST_HEADER.toLong())) damaged(name)
        val header = ByteArray(length.toInt()).also(stream::readFully)
        val (type, columns, extents) =
            HEADER.matchEntire(String(header, Charsets.ISO_8859_1))?.destructured ?: damaged(name)
        if (type == "|O" || "O" in type) damaged(name)
        val shape =
            extents.split(',').filter(String::isNotBlank).map {
                it.trim().toLongOrNull() ?: damaged(name)
            }
        if (type != "<f4") throw Refusal("$name must hold one float32 array")
        val room = (size - 8 - width - length) / 4
        if (shape.fold(1L) { product, extent -> capped(product, extent, room) } > room)
            damaged(name)
        return ordered(shape.map(Long::toInt).toIntArray(), columns == "True", stream)
    }

    /** A product, or more than [most] before it overflows. */
    private fun capped(product: Long, extent: Long, most: Long): Long =
        if (extent != 0L && product > most / extent) most + 1 else product * extent

    private fun ordered(
        shape: IntArray,
        byColumns: Boolean,
        stream: DataInputStream,
    ): Tensor.Floats {
        val count = Math.toIntExact(Tensor.elements(shape))
        val bytes = ByteArray(Math.multiplyExact(4, count)).also(stream::readFully)
        val numbers = FloatArray(count)
        ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(numbers)
        if (!byColumns || shape.size < 2) return Tensor.Floats(shape, numbers)
        val turned = FloatArray(count)
        val place = IntArray(shape.size)
        for (index in 0 until count) {
            var source = 0
            for (axis in shape.indices.reversed()) source = source * shape[axis] + place[axis]
            turned[index] = numbers[source]
            var axis = shape.lastIndex
            while (axis >= 0 && ++place[axis] == shape[axis]) place[axis--] = 0
        }
        return Tensor.Floats(shape, turned)
    }

    private fun ByteArray.startsWith(prefix: ByteArray): Boolean =
        size >= prefix.size && prefix.indices.all { this[it] == prefix[it] }

    private fun damaged(name: String): Nothing = throw Refusal("$name: not a .npy file of numbers")
}
