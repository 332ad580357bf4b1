package io.mtuexport.onnx

import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Target

/**
 * ONNX Runtime on the CPU: `com.microsoft.onnxruntime:onnxruntime` on a desktop,
 * `onnxruntime-android` on a phone, 1.20 or newer. Parts are opened by their path, so that weights
 * beside a graph are read where they lie.
 *
 * Activations that int8 weights multiply stay float32 (`session.qdq_matmulnbits_accuracy_level` 1),
 * as the bundle's proof was made; [OnnxOptions.entries] may set another level. A run is interrupted
 * between two operators of the graph.
 *
 * It is safe for use by several pipelines.
 */
public class OnnxRuntime
@JvmOverloads
constructor(private val options: OnnxOptions = OnnxOptions()) : PartRuntime {
    /** [Target.ONNX]. */
    override val target: Target
        get() = Target.ONNX

    /**
     * Loads one graph.
     *
     * @throws MtuException.RuntimeMissing where the classes or the library are not there or too
     *   old.
     * @throws MtuException.OutOfMemory where ONNX Runtime says so.
     * @throws MtuException.PartFailed for a graph that it refuses, or whose inputs and outputs are
     *   not those of the manifest.
     */
    override fun open(part: LoadedPart): PartSession {
        requireVersion(version)
        return linked { OnnxSession.open(part, options) }
    }

    /** What is known before a part is opened. */
    public companion object {
        private const val LEAST_MAJOR = 1
        private const val LEAST_MINOR = 20
        private const val ARTEFACT =
            "com.microsoft.onnxruntime:onnxruntime-android or :onnxruntime, $LEAST_MAJOR.$LEAST_MINOR or newer"

        /**
         * The version of the native library, such as `1.28.0`. Loads it.
         *
         * @throws MtuException.RuntimeMissing where it is not there.
         */
        @JvmStatic
        public val version: String
            get() = linked { OnnxSession.version() }

        internal fun requireVersion(version: String) {
            val (major, minor) =
                version.split('.', '-').map { it.toIntOrNull() ?: 0 } + listOf(0, 0)
            if (major > LEAST_MAJOR || major == LEAST_MAJOR && minor >= LEAST_MINOR) return
            throw MtuException.RuntimeMissing(Target.ONNX, ARTEFACT, "its version is $version")
        }

        /** What [work] returns; a class or library that is not there is named. */
        private inline fun <T> linked(work: () -> T): T =
            try {
                work()
            } catch (error: LinkageError) { // also of a class whose initialisation has failed
                val cause = generateSequence<Throwable>(error) { it.cause }.last()
                val reason = "${cause.javaClass.simpleName}: ${cause.message?.lineSequence()?.first()}"
                throw MtuException.RuntimeMissing(Target.ONNX, ARTEFACT, reason, error)
            }
    }
}
