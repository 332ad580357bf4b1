package org.pytorch.executorch

import java.io.File
import java.nio.Buffer
import java.nio.ByteBuffer

/**
 * What the library in C++ does; its errors are thrown as [ExecutorchRuntimeException]. Nothing of
 * it is thread-safe on one handle: [Module] sees to that.
 */
internal object Native {
    /** Kinds of values as the library knows them; 0 is none. */
    const val TENSOR = 1
    const val BOOL = 2
    const val INT = 3
    const val DOUBLE = 4
    const val STRING = 5

    private const val LIBRARY = "libmtu_executorch_jni.so"

    init {
        val folder = System.getProperty("mtu.executorch") ?: System.getenv("MTU_EXECUTORCH")
        if (folder.isNullOrEmpty()) {
            System.loadLibrary("mtu_executorch_jni")
        } else {
            System.load(File(folder, LIBRARY).absolutePath)
        }
    }

    /** Opens a program; [path] in UTF-8. Returns its handle. */
    @JvmStatic external fun open(path: ByteArray, mode: Int): Long

    @JvmStatic external fun close(handle: Long)

    /** Names of the methods. */
    @JvmStatic external fun methods(handle: Long): Array<String>

    /** Names of the backends of a method. */
    @JvmStatic external fun backends(handle: Long, method: ByteArray): Array<String>

    /** Of each input its kind, and of a tensor its type and extents besides. */
    @JvmStatic external fun inputs(handle: Long, method: ByteArray): Array<LongArray>

    /** Loads a method. */
    @JvmStatic external fun load(handle: Long, method: ByteArray)

    /** Runs a method and tells [outputs] of what it leaves. */
    @JvmStatic
    external fun run(
        handle: Long,
        method: ByteArray,
        kinds: IntArray,
        numbers: LongArray,
        buffers: Array<Buffer?>,
        shapes: Array<LongArray?>,
        outputs: Outputs,
    )

    /** Sets the number of threads of the process's one pool. */
    @JvmStatic external fun threads(count: Int): Boolean

    /** ExecuTorch's version, as the library was built. */
    @JvmStatic external fun version(): String
}

/** What a run leaves, in order; the library calls these functions by name. */
internal class Outputs(private val lease: Lease) {
    val values = ArrayList<EValue>()

    fun tensor(code: Int, shape: LongArray, data: ByteBuffer) {
        values += EValue.from(BlobTensor.borrowed(data, shape, DType.fromJniCode(code), lease))
    }

    fun number(kind: Int, bits: Long) {
        values +=
            when (kind) {
                Native.BOOL -> EValue.from(bits != 0L)
                Native.INT -> EValue.from(bits)
                Native.DOUBLE -> EValue.from(java.lang.Double.longBitsToDouble(bits))
                else -> EValue.optionalNone()
            }
    }

    fun text(utf8: ByteArray) {
        values += EValue.from(String(utf8, Charsets.UTF_8))
    }
}
