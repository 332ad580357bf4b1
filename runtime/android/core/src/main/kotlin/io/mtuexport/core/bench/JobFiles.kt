package io.mtuexport.core.bench

import io.mtuexport.core.Damaged
import io.mtuexport.core.ElementType
import io.mtuexport.core.Json
import io.mtuexport.core.Safetensors
import io.mtuexport.core.Tensor
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The value of a job's file. */
internal fun readJson(file: File): Any? =
    try {
        Json.parse(file.readBytes(), file.name)
    } catch (error: IOException) {
        throw JobFailure(BAD_JOB, "${file.name} cannot be read", error)
    } catch (error: Damaged) {
        throw JobFailure(BAD_JOB, error.message.orEmpty(), error)
    }

/** The job's tensors: forms from the header, numbers when they are asked for. */
internal class TensorFile(private val file: File) {
    private val tensors = damagedIsBad { Safetensors.open(file) }

    val forms: Map<String, Form> =
        tensors.names.associateWith { name ->
            val shape = checkNotNull(tensors.shape(name))
            if (shapeOf(shape.map(Int::toDouble)) == null) {
                val rule = "rank at most 8, extents from 1, at most 1 GiB are needed"
                throw JobFailure(BAD_FILE, "${file.name}: tensor $name: $rule")
            }
            Form(if (tensors.isFloat(name)) ElementType.FLOAT32 else ElementType.INT32, shape)
        }

    fun read(name: String): Tensor = damagedIsBad { tensors.read(name) }

    private inline fun <T> damagedIsBad(read: () -> T): T =
        try {
            read()
        } catch (error: IOException) {
            throw JobFailure(BAD_FILE, "${file.name} cannot be read", error)
        } catch (error: Damaged) {
            throw JobFailure(BAD_FILE, error.message.orEmpty(), error)
        }
}

/** Writes tensors as safetensors, whole or not at all. */
internal fun writeTensors(file: File, tensors: Map<String, Tensor>) {
    var end = 0L
    val header =
        tensors.mapValues { (_, tensor) ->
            val begin = end
            end += 4 * Tensor.elements(tensor.shape)
            mapOf(
                "dtype" to if (tensor is Tensor.Floats) "F32" else "I32",
                "shape" to tensor.shape.toList(),
                "data_offsets" to listOf(begin, end),
            )
        }
    val words = Json.write(header).toByteArray()
    val padding = (8 - words.size % 8) % 8
    val size = Math.toIntExact(8 + words.size + padding + end)
    val bytes = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
    bytes.putLong((words.size + padding).toLong()).put(words)
    repeat(padding) { bytes.put(' '.code.toByte()) }
    for (tensor in tensors.values) {
        when (tensor) {
            is Tensor.Floats -> for (number in tensor.data) bytes.putFloat(number)
            is Tensor.Ints -> for (number in tensor.data) bytes.putInt(number)
        }
    }
    replaceFile(file, bytes.array())
}

/** Writes a file whole or not at all. */
@Throws(IOException::class)
internal fun replaceFile(file: File, bytes: ByteArray) {
    val draft = File(file.absoluteFile.parentFile, file.name + ".part")
    draft.writeBytes(bytes)
    if (!draft.renameTo(file)) {
        draft.delete()
        throw IOException("$file cannot be written")
    }
}
