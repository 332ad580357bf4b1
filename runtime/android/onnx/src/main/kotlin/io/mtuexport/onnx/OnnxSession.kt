package io.mtuexport.onnx

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.OrtSession.SessionOptions.OptLevel
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Tensor
import java.io.File
import java.nio.FloatBuffer
import java.nio.IntBuffer

/**
 * A loaded graph. Whatever names `ai.onnxruntime` is in this class, so that [OnnxRuntime] can be
 * loaded where it is missing.
 */
internal class OnnxSession
private constructor(
    private val part: LoadedPart,
    private val session: OrtSession,
    private val options: OrtSession.SessionOptions,
) : PartSession {
    private val lock = Any()
    private val outputNames = part.outputs.mapTo(LinkedHashSet()) { it.name }
    private var running: OrtSession.RunOptions? = null

    override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
        val values = LinkedHashMap<String, OnnxTensor>()
        val runOptions = OrtSession.RunOptions()
        try {
            for (spec in part.inputs) values[spec.name] = toOrt(inputs.getValue(spec.name))
            synchronized(lock) { running = runOptions }
            return session.run(values, outputNames, runOptions).use { results ->
                part.outputs.associate { it.name to outputOf(results, it.name) }
            }
        } catch (error: OrtException) {
            throw failed(part, Phase.RUN, error)
        } finally {
            synchronized(lock) { running = null }
            values.values.forEach(OnnxTensor::close)
            runOptions.close()
        }
    }

    override fun interrupt() {
        synchronized(lock) { running?.setTerminate(true) }
    }

    override fun close() {
        try {
            session.close()
        } finally {
            options.close() // not before: the session may use what it holds
        }
    }

    private fun toOrt(tensor: Tensor): OnnxTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return when (tensor) {
            is Tensor.Floats ->
                OnnxTensor.createTensor(environment(), FloatBuffer.wrap(tensor.data), shape)
            is Tensor.Ints ->
                OnnxTensor.createTensor(environment(), IntBuffer.wrap(tensor.data), shape)
        }
    }

    /** A copy of an output: the result's own memory ends with the run. */
    private fun outputOf(results: OrtSession.Result, name: String): Tensor.Floats {
        val tensor = results.get(name).orElse(null) as? OnnxTensor
        if (tensor == null || tensor.info.type != OnnxJavaType.FLOAT) {
            throw MtuException.PartFailed(
                part.name,
                Phase.RUN,
                "output \"$name\" is no float32 tensor",
            )
        }
        val shape =
            tensor.info.shape.let { extents -> IntArray(extents.size) { extents[it].toInt() } }
        val copied = tensor.floatBuffer
        return Tensor.Floats(shape, FloatArray(copied.remaining()).also { copied.get(it) })
    }

    companion object {
        private const val LARGE_BYTES = 1_000_000_000L
        private val OUT_OF_MEMORY = listOf("bad_alloc", "Failed to allocate memory")

        fun version(): String = environment().version

        /** The process's only one; nobody closes it. */
        private fun environment(): OrtEnvironment = OrtEnvironment.getEnvironment()

        fun open(part: LoadedPart, chosen: OnnxOptions): OnnxSession {
            val options = OrtSession.SessionOptions()
            try {
                configure(options, chosen, isLarge = weightsOf(part) > LARGE_BYTES)
                val session = environment().createSession(File(part.path, part.entry).path, options)
                try {
                    requireNames(part, session)
                } catch (error: MtuException) {
                    session.close()
                    throw error
                }
                return OnnxSession(part, session, options)
            } catch (error: OrtException) {
                options.close()
                throw failed(part, Phase.OPEN, error)
            } catch (error: MtuException) {
                options.close()
                throw error
            }
        }

        private fun configure(
            options: OrtSession.SessionOptions,
            chosen: OnnxOptions,
            isLarge: Boolean,
        ) {
            options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR)
            options.setOptimizationLevel(
                when (chosen.optimization ?: if (isLarge) Optimization.NONE else Optimization.ALL) {
                    Optimization.NONE -> OptLevel.NO_OPT
                    Optimization.BASIC -> OptLevel.BASIC_OPT
                    Optimization.EXTENDED -> OptLevel.EXTENDED_OPT
                    Optimization.ALL -> OptLevel.ALL_OPT
                }
            )
            options.setCPUArenaAllocator(chosen.arena)
            options.setMemoryPatternOptimization(chosen.memoryPattern ?: !isLarge)
            if (chosen.threads > 0) options.setIntraOpNumThreads(chosen.threads)
            val entries = mapOf("session.qdq_matmulnbits_accuracy_level" to "1") + chosen.entries
            entries.forEach(options::addConfigEntry)
        }

        /** Bytes beside the graphs of a folder. */
        private fun weightsOf(part: LoadedPart): Long =
            part.path
                .listFiles()
                .orEmpty()
                .filter { it.extension != "onnx" }
                .maxOfOrNull { it.length() } ?: 0

        private fun requireNames(part: LoadedPart, session: OrtSession) {
            val inputs = part.inputs.map { it.name }.toSet()
            val outputs = part.outputs.map { it.name }.toSet()
            val what =
                when {
                    session.inputNames != inputs -> "inputs"
                    !session.outputNames.containsAll(outputs) -> "outputs"
                    else -> return
                }
            throw MtuException.PartFailed(
                part.name,
                Phase.OPEN,
                "its $what are not those of the manifest",
            )
        }

        private fun failed(part: LoadedPart, phase: Phase, error: OrtException): MtuException {
            val message = error.message.orEmpty()
            if (OUT_OF_MEMORY.any { it in message })
                return MtuException.OutOfMemory(part.name, part.bytes, error)
            val reason = message.lineSequence().first().take(300)
            val versions = if (phase == Phase.OPEN) " (${versionsOf(part)})" else ""
            return MtuException.PartFailed(part.name, phase, reason + versions, error)
        }

        private fun versionsOf(part: LoadedPart) =
            "made with ONNX Runtime ${part.versions["onnxruntime"] ?: "unknown"}, here is ${version()}"
    }
}
