package io.mtuexport.core

import java.io.RandomAccessFile

private val PLAIN_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9_.-]*")

/** The end of rule 8: letters, digits, `_`, `.` and `-`, not beginning with the last two. */
internal fun isPlainName(name: String): Boolean = PLAIN_NAME.matches(name)

/** What rules 8 and 13 say of the inside of the ONNX files of a part. */
internal fun checkGraphs(part: Part, files: BundleFiles) {
    for (entry in part.entries.values.toSet()) {
        val path = "${part.file.path}/$entry"
        val locations = underRule(8, path) { OnnxFile.locations(files, path) }
        underRule(8, path) {
            for (location in locations) requireFile(files, part, location, "$path: external data")
        }
    }
}

/** An ONNX file, of which only the fields that lead to external data are looked at. */
internal class OnnxFile private constructor(
    private val file: RandomAccessFile,
    private val path: String,
) {
    private enum class Message { MODEL, GRAPH, FUNCTION, NODE, ATTRIBUTE, SPARSE, TENSOR, ENTRY }

    private class Span(val begin: Long, val end: Long)

    private val buffer = ByteArray(BUFFER)
    private var bufferBegin = 0L
    private var bufferSize = 0
    private val locations = LinkedHashSet<String>()

    private fun walk(span: Span, message: Message) {
        var at = span.begin
        var key: Span? = null
        var value: Span? = null
        while (at < span.end) {
            val tag = number(at, span.end).also { at = it.end }.value
            refuseUnless(tag in LEAST_TAG..LARGEST_TAG, path) { "no protobuf message" }
            val field = (tag shr TAG_BITS).toInt()
            val length = when ((tag and WIRE_MASK).toInt()) {
                WIRE_NUMBER -> {
                    at = number(at, span.end).end
                    continue
                }
                WIRE_8_BYTES -> 8L
                WIRE_4_BYTES -> 4L
                WIRE_CONTENT -> number(at, span.end).also { at = it.end }.value
                else -> throw Damaged(path, "no protobuf message")
            }
            refuseUnless(length in 0..span.end - at, path) { "a field that is cut off" }
            val content = Span(at, at + length)
            at = content.end
            if ((tag and WIRE_MASK).toInt() != WIRE_CONTENT) continue
            if (message == Message.ENTRY && field == ENTRY_KEY) key = content
            if (message == Message.ENTRY && field == ENTRY_VALUE) value = content
            val inner = FIELDS[message]?.get(field) ?: continue
            if (message == Message.ATTRIBUTE && inner == Message.GRAPH) {
                throw MtuException.BundleRefused(13, path, "a node holds a graph of its own")
            }
            walk(content, inner)
        }
        if (key != null && text(key, LOCATION.length) == LOCATION) addLocation(value)
    }

    private fun addLocation(span: Span?) {
        val location = if (span == null) "" else text(span, LONGEST_NAME)
        refuseUnless(location != null && isPlainName(location), path) {
            "external data at ${quoted(location)}"
        }
        locations += location
    }

    private class Varint(val value: Long, val end: Long)

    private fun number(begin: Long, end: Long): Varint {
        var value = 0L
        for (index in 0 until LONGEST_NUMBER) {
            refuseUnless(begin + index < end, path) { "a number that is cut off" }
            val byte = byte(begin + index)
            value = value or (byte.toLong() and 127 shl 7 * index)
            if (byte >= 0) return Varint(value, begin + index + 1)
        }
        throw Damaged(path, "a number without an end")
    }

    /** Bytes as Latin letters, which no plain name needs more of; null of more than [most]. */
    private fun text(span: Span, most: Int): String? {
        if (span.end - span.begin > most) return null
        return buildString {
            for (at in span.begin until span.end) append((byte(at).toInt() and 255).toChar())
        }
    }

    private fun byte(at: Long): Byte {
        if (at < bufferBegin || at >= bufferBegin + bufferSize) {
            bufferBegin = at
            bufferSize = file.readAt(at, buffer)
            refuseUnless(bufferSize > 0, path) { "it has become shorter" }
        }
        return buffer[(at - bufferBegin).toInt()]
    }

    companion object {
        private const val BUFFER = 1 shl 13
        private const val TAG_BITS = 3
        private const val WIRE_MASK = 7L
        private const val WIRE_NUMBER = 0
        private const val WIRE_8_BYTES = 1
        private const val WIRE_CONTENT = 2
        private const val WIRE_4_BYTES = 5
        private const val LEAST_TAG = 8L // field 1
        private const val LARGEST_TAG = 0xffff_ffffL
        private const val LONGEST_NUMBER = 10
        private const val ENTRY_KEY = 1
        private const val ENTRY_VALUE = 2
        private const val LOCATION = "location"
        private const val LONGEST_NAME = 255

        private val FIELDS = mapOf(
            Message.MODEL to mapOf(7 to Message.GRAPH, 25 to Message.FUNCTION),
            Message.GRAPH to mapOf(1 to Message.NODE, 5 to Message.TENSOR, 15 to Message.SPARSE),
            Message.FUNCTION to mapOf(7 to Message.NODE, 11 to Message.ATTRIBUTE),
            Message.NODE to mapOf(5 to Message.ATTRIBUTE),
            Message.ATTRIBUTE to mapOf(
                5 to Message.TENSOR, 10 to Message.TENSOR, 6 to Message.GRAPH, 11 to Message.GRAPH,
                22 to Message.SPARSE, 23 to Message.SPARSE,
            ),
            Message.SPARSE to mapOf(1 to Message.TENSOR, 2 to Message.TENSOR),
            Message.TENSOR to mapOf(13 to Message.ENTRY),
        )

        /**
         * The names of the files that hold a graph's external data.
         *
         * @throws Damaged for what is no protobuf message, and a location that is no plain name.
         * @throws MtuException.BundleRefused rule 13: a node holds a graph of its own.
         */
        fun locations(files: BundleFiles, path: String): Set<String> =
            RandomAccessFile(files.file(path), "r").use { opened ->
                val file = OnnxFile(opened, path)
                file.walk(Span(0, opened.length()), Message.MODEL)
                file.locations
            }
    }
}
