package io.mtuexport.core

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A safetensors file of F32 and I32, checked by its header. The file is open while a tensor is
 * read, and never longer.
 */
internal class Safetensors private constructor(
    private val file: File,
    private val what: String,
    private val dataBegin: Long,
    private val entries: Map<String, Entry>,
) {
    private class Entry(
        val isFloat: Boolean,
        val shape: IntArray,
        val begin: Long,
        val count: Int,
    ) {
        val end: Long get() = begin + BYTES * count.toLong()

        fun holds(place: Long) = place in begin until end && (place - begin) % BYTES == 0L
    }

    /** Names of the tensors, in the order of the header. */
    val names: Set<String> get() = entries.keys

    /** The shape of a tensor; null where there is none of this name. */
    fun shape(name: String): IntArray? = entries[name]?.shape

    /** Whether there is a float32 tensor of this name. */
    fun isFloat(name: String): Boolean = entries[name]?.isFloat == true

    /** A tensor; throws [Damaged] where it is missing, or float32 and not finite. */
    fun read(name: String): Tensor {
        val entry = entry(name)
        if (entry.isFloat) return floats(name)
        val data = IntArray(entry.count)
        opened { file ->
            pieces(file, entry.begin, entry.end) { at, piece ->
                piece.asIntBuffer().let { it.get(data, at.toInt(), it.remaining()) }
            }
        }
        return Tensor.Ints(entry.shape, data)
    }

    /** A float32 tensor; throws [Damaged] where it is missing, not float32 or not finite. */
    fun floats(name: String): Tensor.Floats {
        val entry = entry(name)
        refuseUnless(entry.isFloat, what) { "${quoted(name)} is not float32" }
        val data = FloatArray(entry.count)
        opened { file ->
            pieces(file, entry.begin, entry.end) { at, piece ->
                piece.asFloatBuffer().let { it.get(data, at.toInt(), it.remaining()) }
            }
        }
        refuseUnless(data.all { it.isFinite() }, what) { "${quoted(name)} is not finite" }
        return Tensor.Floats(entry.shape, data)
    }

    /**
     * Throws [Damaged] where one of these tensors is float32 and not finite. A piece of the file is
     * held at a time, and what several tensors share is read once.
     */
    fun requireFinite(names: Collection<String>) {
        val floats = names.map(::entry).filter { it.isFloat && it.count > 0 }
        opened { file ->
            for (sameAlignment in floats.groupBy { it.begin % BYTES }.values) {
                for ((begin, end) in joined(sameAlignment)) requireFinite(file, begin, end)
            }
        }
    }

    private fun requireFinite(file: RandomAccessFile, begin: Long, end: Long) {
        pieces(file, begin, end) { at, piece ->
            val floats = piece.asFloatBuffer()
            while (floats.hasRemaining()) {
                if (floats.get().isFinite()) continue
                val place = begin + BYTES * (at + floats.position() - 1)
                val name = entries.entries.first { it.value.isFloat && it.value.holds(place) }.key
                throw Damaged(what, "${quoted(name)} is not finite")
            }
        }
    }

    private fun entry(name: String): Entry =
        entries[name] ?: throw Damaged(what, "${quoted(name)} is missing")

    private inline fun opened(use: (RandomAccessFile) -> Unit) =
        RandomAccessFile(file, "r").use { use(it) }

    /** Hands out a part of the data piece by piece, with the number of elements before each. */
    private inline fun pieces(
        file: RandomAccessFile,
        begin: Long,
        end: Long,
        take: (Long, ByteBuffer) -> Unit,
    ) {
        val bytes = ByteArray(minOf(PIECE.toLong(), end - begin).toInt())
        var at = begin
        while (at < end) {
            val length = minOf(bytes.size.toLong(), end - at).toInt()
            refuseUnless(file.readAt(dataBegin + at, bytes, length) == length, what) {
                "it has become shorter"
            }
            val piece = ByteBuffer.wrap(bytes, 0, length).order(ByteOrder.LITTLE_ENDIAN)
            take((at - begin) / BYTES, piece)
            at += length
        }
    }

    companion object {
        private const val LARGEST_HEADER = 4_000_000
        private const val LENGTH_BYTES = 8
        private const val BYTES = 4
        private const val PIECE = 1 shl 18

        /**
         * Reads and checks the header of [file]; [what] names it in messages.
         *
         * @throws Damaged for what the contract refuses under "Files".
         */
        @Throws(IOException::class)
        fun open(file: File, what: String = file.name): Safetensors {
            RandomAccessFile(file, "r").use { opened ->
                val size = opened.length()
                refuseUnless(size >= LENGTH_BYTES, what) { "it is cut off" }
                val length = ByteBuffer.wrap(bytes(opened, 0, LENGTH_BYTES, what))
                    .order(ByteOrder.LITTLE_ENDIAN).getLong(0)
                val most = minOf(LARGEST_HEADER.toLong(), size - LENGTH_BYTES)
                refuseUnless(length in 0..most, what) {
                    "a header of ${java.lang.Long.toUnsignedString(length)} bytes"
                }
                val header = bytes(opened, LENGTH_BYTES.toLong(), length.toInt(), what)
                val begin = LENGTH_BYTES + length
                val entries = LinkedHashMap<String, Entry>()
                for ((name, entry) in Json.parseObject(header, what)) {
                    if (name == "__metadata__") continue
                    entries[name] = checked(entry, size - begin, "$what: ${quoted(name)}")
                }
                return Safetensors(file, what, begin, entries)
            }
        }

        private fun checked(entry: Any?, size: Long, where: String): Entry {
            refuseUnless(entry is Map<*, *>, where) { "it is no object" }
            val dtype = entry["dtype"]
            refuseUnless(dtype == "F32" || dtype == "I32", where) {
                "its dtype is neither F32 nor I32"
            }
            val shape = counts(entry["shape"], Int.MAX_VALUE.toLong())
            val offsets = counts(entry["data_offsets"], size)
            refuseUnless(shape != null && offsets != null && offsets.size == 2, where) {
                "its shape or its data_offsets"
            }
            val (begin, end) = offsets
            val count = (end - begin) / BYTES
            val fits = (end - begin) % BYTES == 0L && count == product(shape, size)
            refuseUnless(begin <= end && fits && count <= Int.MAX_VALUE, where) {
                "its data_offsets do not fit its shape"
            }
            val extents = IntArray(shape.size) { shape[it].toInt() }
            return Entry(dtype == "F32", extents, begin, count.toInt())
        }

        /** Whole numbers from 0 to [most]; null where a value is none. */
        private fun counts(value: Any?, most: Long): List<Long>? {
            if (value !is List<*>) return null
            val numbers = value.filterIsInstance<Double>().filter { isCount(it, most) }
            return if (numbers.size == value.size) numbers.map { it.toLong() } else null
        }

        private fun isCount(number: Double, most: Long) =
            number >= 0 && number <= most && number % 1.0 == 0.0

        /** The product of extents, or -1 where it is above [most] before a 0 makes it 0. */
        private fun product(shape: List<Long>, most: Long): Long {
            if (0L in shape) return 0
            var product = 1L
            for (extent in shape) {
                if (extent > most / product) return -1
                product *= extent
            }
            return product
        }

        private fun bytes(file: RandomAccessFile, at: Long, length: Int, what: String): ByteArray {
            val bytes = ByteArray(length)
            refuseUnless(file.readAt(at, bytes) == length, what) { "it is cut off" }
            return bytes
        }

        /** Begin and end of what tensors of one alignment cover, without overlaps. */
        private fun joined(entries: List<Entry>): List<Pair<Long, Long>> {
            val joined = ArrayList<Pair<Long, Long>>()
            for (entry in entries.sortedBy { it.begin }) {
                val last = joined.lastOrNull()
                if (last == null || entry.begin > last.second) {
                    joined += entry.begin to entry.end
                } else if (entry.end > last.second) {
                    joined[joined.size - 1] = last.first to entry.end
                }
            }
            return joined
        }
    }
}
