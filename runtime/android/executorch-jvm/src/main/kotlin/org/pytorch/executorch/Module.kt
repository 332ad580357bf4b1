package org.pytorch.executorch

import java.io.File
import java.nio.Buffer
import java.util.concurrent.locks.ReentrantLock

/**
 * A `.pte` file that is open, on a desktop with Linux.
 *
 * Names and behaviour are those of ExecuTorch's library for Android, as far as bundles need them:
 * code that compiles against this module compiles against the library. The runtime behind it is
 * that of ExecuTorch's Python wheel, with XNNPACK and the optimized and quantized kernels. One lock
 * guards every call. Native memory is freed by [destroy] alone.
 */
public class Module private constructor(private var handle: Long) : AutoCloseable {
    private val lock = ReentrantLock()
    private var lease = Lease()
    private val metadata: Map<String, MethodMetadata> =
        try {
            Native.methods(handle).associateWith {
                MethodMetadata(it, Native.backends(handle, utf8(it)))
            }
        } catch (error: Throwable) {
            Native.close(handle)
            throw error
        }

    /** Names of the methods. */
    public fun getMethods(): Array<String> = guarded { metadata.keys.toTypedArray() }

    /**
     * What is known of a method; throws IllegalArgumentException where there is none of this name.
     */
    public fun getMethodMetadata(name: String): MethodMetadata = guarded {
        requireNotNull(metadata[name]) {
            "there is no method '$name'; there are: ${metadata.keys.joinToString(", ")}"
        }
    }

    /**
     * Loads a method, which [execute] would do at its first call.
     *
     * @throws ExecutorchRuntimeException Where it is not there or cannot be loaded.
     */
    public fun loadMethod(methodName: String): Unit = guarded {
        known(methodName)
        Native.load(handle, utf8(methodName))
    }

    /**
     * Runs a method. Without any [inputs] its tensors are filled with ones.
     *
     * @return Its outputs. Their memory is the module's until the next call: copy them at once.
     * @throws ExecutorchRuntimeException Where inputs do not fit, or it fails.
     */
    public fun execute(methodName: String, vararg inputs: EValue): Array<EValue> = guarded {
        known(methodName)
        val method = utf8(methodName)
        Native.load(handle, method)
        val wanted = Native.inputs(handle, method)
        val values =
            if (inputs.isEmpty()) Array(wanted.size) { ones(wanted[it], it) } else arrayOf(*inputs)
        compare(methodName, wanted, values)
        val tensors = values.map { if (it.isTensor) it.toTensor() else null }
        val buffers = Array(values.size) { tensors[it]?.getRawDataBuffer() }
        lease.ended = true
        lease = Lease()
        val outputs = Outputs(lease)
        Native.run(
            handle,
            method,
            IntArray(values.size) { kind(values[it]) },
            LongArray(values.size) { bits(values[it]) },
            buffers,
            Array(values.size) { tensors[it]?.shape() },
            outputs,
        )
        outputs.values.toTypedArray()
    }

    /** [execute] of the method `forward`. */
    public fun forward(vararg inputs: EValue): Array<EValue> = execute("forward", *inputs)

    /**
     * Frees the module's memory; a second call does nothing.
     *
     * @throws IllegalStateException While another thread is within a call.
     */
    public fun destroy() {
        check(lock.tryLock()) { "the module cannot be destroyed while a method executes" }
        try {
            if (handle != 0L) {
                lease.ended = true
                Native.close(handle)
                handle = 0L
            }
        } finally {
            lock.unlock()
        }
    }

    /** [destroy]. */
    override fun close(): Unit = destroy()

    private inline fun <T> guarded(call: () -> T): T {
        lock.lock()
        try {
            check(handle != 0L) { "the module has been destroyed" }
            return call()
        } finally {
            lock.unlock()
        }
    }

    private fun known(method: String) {
        if (method !in metadata) {
            refuse("there is no method '$method'; there are: ${metadata.keys.joinToString(", ")}")
        }
    }

    /** Load modes, and the way to open a file. */
    public companion object {
        /** The whole file is read into memory. */
        public const val LOAD_MODE_FILE: Int = 0

        /** The file is mapped into memory. */
        public const val LOAD_MODE_MMAP: Int = 1

        /** Mapped, and kept in memory; an error where the system refuses that. */
        public const val LOAD_MODE_MMAP_USE_MLOCK: Int = 2

        /** Mapped, and kept in memory where the system allows it. */
        public const val LOAD_MODE_MMAP_USE_MLOCK_IGNORE_ERRORS: Int = 3

        /** The runtime's version. */
        internal val version: String
            get() = Native.version()

        /**
         * Opens a file and checks that it is consistent; loads no method.
         *
         * @param modelPath A readable file.
         * @param loadMode One of the constants here.
         * @param numThreads Threads of the one pool that all modules of the process share: above 0
         *   it is made anew, which must not happen while a method executes; 0 leaves it.
         * @throws IllegalArgumentException Where the path, mode or number is not legal.
         * @throws ExecutorchRuntimeException Where the file is no program of this runtime.
         */
        @JvmStatic
        @JvmOverloads
        public fun load(
            modelPath: String?,
            loadMode: Int = LOAD_MODE_FILE,
            numThreads: Int = 0,
        ): Module {
            requireNotNull(modelPath) { "the path of the model is null" }
            val file = File(modelPath)
            require(file.isFile) {
                "$modelPath is ${if (file.exists()) "no file" else "not there"}"
            }
            require(file.canRead()) { "$modelPath is not readable" }
            require(loadMode in LOAD_MODE_FILE..LOAD_MODE_MMAP_USE_MLOCK_IGNORE_ERRORS) {
                "there is no load mode $loadMode"
            }
            require(numThreads >= 0) { "$numThreads threads" }
            if (numThreads > 0 && !Native.threads(numThreads)) {
                throw ExecutorchRuntimeException(
                    ExecutorchRuntimeException.INTERNAL,
                    "the thread pool cannot be set",
                )
            }
            return Module(Native.open(utf8(modelPath), loadMode))
        }

        private fun utf8(text: String) = text.toByteArray(Charsets.UTF_8)

        private fun refuse(why: String): Nothing =
            throw ExecutorchRuntimeException.ExecutorchInvalidArgumentException(why)

        private fun kind(value: EValue) =
            when {
                value.isTensor -> Native.TENSOR
                value.isBool -> Native.BOOL
                value.isInt -> Native.INT
                value.isDouble -> Native.DOUBLE
                value.isString -> Native.STRING
                else -> 0
            }

        private fun bits(value: EValue) =
            when {
                value.isBool -> if (value.toBool()) 1L else 0L
                value.isInt -> value.toInt()
                value.isDouble -> java.lang.Double.doubleToRawLongBits(value.toDouble())
                value.isTensor -> value.toTensor().dtype().jniCode.toLong()
                else -> 0L
            }

        // Kinds, types and ranks; the runtime compares extents, which may vary below a bound.
        private fun compare(method: String, wanted: Array<LongArray>, values: Array<EValue>) {
            if (wanted.size != values.size) {
                refuse("method '$method' takes ${wanted.size} inputs, ${values.size} are given")
            }
            for ((index, value) in values.withIndex()) {
                val form = wanted[index]
                if (value.isNone) continue // of an optional input; the runtime refuses it elsewhere
                if (value.isString || kind(value).toLong() != form[0]) {
                    refuse("input $index of method '$method' cannot be ${value.kind}")
                }
                if (!value.isTensor) continue
                val tensor = value.toTensor()
                if (
                    tensor.dtype().jniCode.toLong() != form[1] ||
                        tensor.shape().size != form.size - 2
                ) {
                    val extents = form.copyOfRange(2, form.size).contentToString()
                    val type = DType.fromJniCode(form[1].toInt())
                    refuse("input $index of method '$method' is $type $extents, not $tensor")
                }
            }
        }

        private fun ones(form: LongArray, index: Int): EValue {
            if (form[0].toInt() == Native.BOOL) return EValue.from(true)
            if (form[0].toInt() == Native.INT) return EValue.from(1L)
            if (form[0].toInt() == Native.DOUBLE) return EValue.from(1.0)
            if (form[0].toInt() != Native.TENSOR) refuse("input $index has no sample value")
            val type = DType.fromJniCode(form[1].toInt())
            val shape = form.copyOfRange(2, form.size)
            val count = Math.toIntExact(Tensor.count(shape))
            val bytes = Tensor.allocateByteBuffer(Math.multiplyExact(count, type.bytes))
            val data: Buffer =
                when (type) {
                    DType.FLOAT ->
                        bytes.asFloatBuffer().apply { for (at in 0 until count) put(at, 1f) }
                    DType.DOUBLE ->
                        bytes.asDoubleBuffer().apply { for (at in 0 until count) put(at, 1.0) }
                    DType.INT32 ->
                        bytes.asIntBuffer().apply { for (at in 0 until count) put(at, 1) }
                    DType.INT64 ->
                        bytes.asLongBuffer().apply { for (at in 0 until count) put(at, 1L) }
                    DType.UINT8,
                    DType.INT8,
                    DType.BOOL -> bytes.apply { for (at in 0 until count) put(at, 1) }
                    DType.INT16,
                    DType.HALF,
                    DType.BFLOAT16 -> refuse("input $index has no sample value of $type")
                }
            return EValue.from(BlobTensor(data, shape, type))
        }
    }
}
