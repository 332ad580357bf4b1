package io.mtuexport.cli

import io.mtuexport.core.MtuException
import java.io.IOException

/**
 * What ends a command: one line for the user, and the exit code of its kind.
 *
 * @property code [PLAN] unless another is named.
 */
internal class Refusal(line: String, val code: Int = PLAN, cause: Throwable? = null) :
    Exception(line, cause)

// Exit codes of `mtu-export`.
internal const val BELOW_FLOOR = 1
internal const val PLAN = 2
internal const val BUNDLE = 3
internal const val TOOLCHAIN = 4
internal const val RESOURCE = 6
internal const val INTERNAL = 70
internal const val INTERRUPTED = 130
internal const val PIPE_CLOSED = 141
internal const val TERMINATED = 143

/** No name of this kind; with those that there are. */
internal fun unknown(kind: String, name: String, legal: Collection<String>): Refusal =
    Refusal(
        "unknown $kind ${quoted(name)}; choose from: ${legal.joinToString(", ").ifEmpty { "none" }}"
    )

/** The line and the exit code of an error. */
internal fun described(error: Throwable): Pair<String, Int> =
    when (error) {
        is Refusal -> error.message.orEmpty() to error.code
        is MtuException.RequestRefused -> error.message.orEmpty() to PLAN
        is MtuException.BundleRefused -> error.message.orEmpty() to BUNDLE
        is MtuException.NotFinite -> error.message.orEmpty() to BELOW_FLOOR
        is MtuException.PartFailed,
        is MtuException.RuntimeMissing -> error.message.orEmpty() to TOOLCHAIN
        is MtuException.OutOfMemory -> error.message.orEmpty() to RESOURCE
        is OutOfMemoryError -> "out of memory; java -Xmx gives more" to RESOURCE
        is IOException -> error.message.orEmpty().ifEmpty { error.toString() } to RESOURCE
        else -> {
            val line = error.message.orEmpty().lineSequence().first()
            "internal error, please report it: ${error.javaClass.simpleName}: $line" to INTERNAL
        }
    }
