package io.mtuexport.testkit

import io.mtuexport.core.Tensor
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * The bundle and the vectors in `runtime/testdata`. It reads them on its own, so that what is
 * expected does not come from the code under test.
 *
 * @property folder `runtime/testdata`.
 */
public class TestData(public val folder: File) {
    /** The bundle, `edit-onnx-int8`. */
    public val bundle: File
        get() = File(folder, "edit-onnx-int8")

    /** The value that a JSON file holds: [Map], [List], [String], [Double], [Boolean] or null. */
    public fun json(name: String): Any? = JsonText(File(folder, name).readText()).value()

    /** The objects of a JSON file that holds a list of them. */
    @Suppress("UNCHECKED_CAST")
    public fun cases(name: String): List<Map<String, Any?>> = json(name) as List<Map<String, Any?>>

    /** The tensors of a safetensors file. */
    public fun tensors(name: String): Map<String, Tensor> {
        val bytes = ByteBuffer.wrap(File(folder, name).readBytes()).order(ByteOrder.LITTLE_ENDIAN)
        val length = bytes.getLong(0).toInt()
        val header = JsonText(String(bytes.array(), 8, length)).value() as Map<*, *>
        return header
            .filterKeys { it != "__metadata__" }
            .entries
            .associate { (key, entry) ->
                entry as Map<*, *>
                val shape = (entry["shape"] as List<*>).map { (it as Double).toInt() }.toIntArray()
                val begin = ((entry["data_offsets"] as List<*>)[0] as Double).toInt()
                bytes.position(8 + length + begin)
                key as String to
                    tensor(
                        entry["dtype"] as String,
                        shape,
                        bytes.slice().order(ByteOrder.LITTLE_ENDIAN),
                    )
            }
    }

    private fun tensor(dtype: String, shape: IntArray, bytes: ByteBuffer): Tensor {
        val count = Tensor.elements(shape).toInt()
        return if (dtype == "F32") {
            Tensor.Floats(shape, FloatArray(count).also { bytes.asFloatBuffer().get(it) })
        } else {
            Tensor.Ints(shape, IntArray(count).also { bytes.asIntBuffer().get(it) })
        }
    }

    /** Finds the data. */
    public companion object {
        /**
         * That of the folder `runtime/` which the system property `mtu.runtime` names.
         *
         * @throws IllegalStateException where it is not set or has no `testdata`.
         */
        @JvmStatic
        public fun open(): TestData {
            val runtime =
                checkNotNull(System.getProperty("mtu.runtime")) {
                    "set -Dmtu.runtime to the folder runtime/"
                }
            val folder = File(runtime, "testdata")
            check(folder.isDirectory) { "$folder is no folder" }
            return TestData(folder)
        }
    }
}

/** JSON that is known to be well formed. */
private class JsonText(private val text: String) {
    private var at = 0

    fun value(): Any? {
        skipSpace()
        return when (text[at]) {
            '{' -> list('}') { string().also { skip(':') } to value() }.toMap()
            '[' -> list(']') { value() }
            '"' -> string()
            't' -> true.also { at += 4 }
            'f' -> false.also { at += 5 }
            'n' -> null.also { at += 4 }
            else -> number()
        }
    }

    private fun <T> list(end: Char, item: () -> T): List<T> {
        val items = ArrayList<T>()
        at += 1
        while (true) {
            skipSpace()
            if (text[at] == end) break
            items += item()
            skipSpace()
            if (text[at] == ',') at += 1
        }
        at += 1
        return items
    }

    private fun number(): Double {
        val begin = at
        while (at < text.length && text[at] in "+-.eE0123456789") at += 1
        return text.substring(begin, at).toDouble()
    }

    private fun string(): String {
        skip('"')
        val result = StringBuilder()
        while (text[at] != '"') {
            if (text[at] == '\\') result.append(escaped()) else result.append(text[at++])
        }
        at += 1
        return result.toString()
    }

    private fun escaped(): Char {
        val letter = text[at + 1]
        at += 2
        if (letter == 'u') return text.substring(at, at + 4).toInt(16).toChar().also { at += 4 }
        return mapOf('n' to '\n', 't' to '\t', 'r' to '\r', 'b' to '\b', 'f' to '\u000C')[letter]
            ?: letter
    }

    private fun skip(letter: Char) {
        skipSpace()
        check(text[at] == letter) { "$letter is expected at $at" }
        at += 1
    }

    private fun skipSpace() {
        while (text[at].isWhitespace()) at += 1
    }
}
