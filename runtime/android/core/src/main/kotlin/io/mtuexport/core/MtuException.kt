package io.mtuexport.core

/** What of a part's life failed. */
public enum class Phase {
    /** Loading it. */
    OPEN,

    /** Running it. */
    RUN,

    /** Freeing it. */
    CLOSE,
}

/**
 * Every error of this library but a programmer's own ([IllegalStateException] after `close`).
 *
 * Its message is one line, whatever a runtime or a file says.
 */
public sealed class MtuException(message: String, cause: Throwable? = null) :
    Exception(oneLine(message), cause) {
    /**
     * The bundle breaks a rule of the contract ("Before anything is trusted").
     *
     * @property rule Its number, 1 to 13; 0 where it is not what it says of itself, or its manifest
     *   is not the expected one.
     * @property where A file or a path in the manifest, never what it holds.
     */
    public class BundleRefused(public val rule: Int, public val where: String, what: String, cause: Throwable? = null) :
        MtuException(if (rule > 0) "rule $rule: $where: $what" else "$where: $what", cause)

    /**
     * The task cannot serve this request.
     *
     * @property what What is wrong.
     * @property legal What is legal, where it can be listed.
     */
    public class RequestRefused(public val what: String, public val legal: List<String> = emptyList()) :
        MtuException(if (legal.isEmpty()) what else "$what; legal: ${legal.joinToString(", ")}")

    /**
     * A runtime cannot load, run or free a part, or the part is not what the manifest says of it.
     *
     * @property part Its name.
     * @property phase What failed.
     */
    public class PartFailed(public val part: String, public val phase: Phase, reason: String, cause: Throwable? = null) :
        MtuException("$part cannot be ${done(phase)}: $reason", cause)

    /**
     * A prediction or the picture holds NaN or Inf.
     *
     * @property pass From 1; null of the picture.
     */
    public class NotFinite(public val pass: Int?) :
        MtuException(if (pass == null) "the picture holds NaN or Inf" else "pass $pass holds NaN or Inf")

    /**
     * The heap is full, or the runtime says that memory is. What is killed by the system never
     * gets here.
     *
     * @property part The part; the task where it was none of them.
     * @property needs Bytes of the part's weights, a lower bound of what it needs; 0 of a task.
     */
    public class OutOfMemory(public val part: String, public val needs: Long, cause: Throwable? = null) :
        MtuException("not enough memory for $part" + if (needs > 0) ", whose weights are $needs bytes" else "", cause)

    /**
     * The runtime's classes or its native library are not there, are too old, or are of another
     * target.
     *
     * @property target The bundle's.
     * @property artefact What brings them: coordinates of a library.
     */
    public class RuntimeMissing(public val target: Target, public val artefact: String, reason: String, cause: Throwable? = null) :
        MtuException("a bundle for ${target.label} needs $artefact: $reason", cause)

    private companion object {
        private fun done(phase: Phase) = when (phase) {
            Phase.OPEN -> "loaded"
            Phase.RUN -> "run"
            Phase.CLOSE -> "freed"
        }
    }
}
