package io.mtuexport.executorch

import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Target
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.Module

/**
 * Opens files; apart from [ExecuTorchRuntime], which works where ExecuTorch's classes are missing.
 */
internal object Modules {
    private const val VERSION = ExecuTorchRuntime.COMPILED_AGAINST

    private val OUT_OF_MEMORY =
        setOf(
            ExecutorchRuntimeException.MEMORY_ALLOCATION_FAILED,
            ExecutorchRuntimeException.DELEGATE_MEMORY_ALLOCATION_FAILED,
        )

    fun open(part: LoadedPart, threads: Int): PartSession {
        val module =
            try {
                Module.load(part.path.path, Module.LOAD_MODE_MMAP, threads)
            } catch (error: ExecutorchRuntimeException) {
                throw refused(part, error)
            }
        try {
            val methods = module.getMethods()
            if (part.entry !in methods) {
                val names = methods.sorted().joinToString(", ")
                val reason = "it has no method '${part.entry}'; it has: $names"
                throw MtuException.PartFailed(part.name, Phase.OPEN, reason)
            }
            module.loadMethod(part.entry)
            return ExecuTorchSession(module, part)
        } catch (error: Throwable) {
            module.destroy()
            throw if (error is ExecutorchRuntimeException) refused(part, error) else error
        }
    }

    private fun refused(part: LoadedPart, error: ExecutorchRuntimeException): MtuException {
        if (error.errorCode in OUT_OF_MEMORY) {
            return MtuException.OutOfMemory(part.name, part.bytes, error)
        }
        val origin = part.versions["executorch"]
        if (origin != null && isNewer(origin, VERSION)) {
            val why =
                "${part.name} comes from ExecuTorch $origin, this app has that of $VERSION, " +
                    "which reads files of its own version and older ones; ${error.message}"
            return missing(why, error)
        }
        val versions = "file of ExecuTorch ${origin ?: "unknown"}, runtime of $VERSION"
        return MtuException.PartFailed(part.name, Phase.OPEN, "${error.message} ($versions)", error)
    }

    /**
     * Whether [version] has a later major or minor number than [other]; false where one has none.
     */
    fun isNewer(version: String, other: String): Boolean {
        val ours = numbers(other) ?: return false
        val theirs = numbers(version) ?: return false
        return theirs.first > ours.first ||
            theirs.first == ours.first && theirs.second > ours.second
    }

    private fun numbers(version: String): Pair<Int, Int>? {
        val parts = version.split(".")
        val major = parts[0].toIntOrNull() ?: return null
        val minor = parts.getOrNull(1)?.toIntOrNull() ?: return null
        return Pair(major, minor)
    }
}

internal fun missing(why: String, cause: Throwable): MtuException {
    val artefact = "org.pytorch:executorch-android:${ExecuTorchRuntime.COMPILED_AGAINST} or newer"
    return MtuException.RuntimeMissing(Target.EXECUTORCH, artefact, why, cause)
}
