package io.mtuexport.onnx

/** How much of a graph ONNX Runtime rewrites when it loads it. */
public enum class Optimization {
    /** Nothing: weights stay as they are in the file until they are needed. */
    NONE,

    /** What holds for every machine. */
    BASIC,

    /** And what holds for the CPU. */
    EXTENDED,

    /** And the layout of weights. */
    ALL,
}

/** Options of the sessions of an [OnnxRuntime]. */
public class OnnxOptions
@JvmOverloads
constructor(
    /** Threads of one part; 0 leaves it to ONNX Runtime: the physical cores. */
    public val threads: Int = 0,
    /**
     * Whether memory between the operators of a graph is kept for the next run; null is yes, but
     * for parts with more than 1 GB of weights. The memory is given back when the part is closed.
     */
    public val arena: Boolean? = null,
    /** Whether the memory of a run is planned as one block; null as [arena]. */
    public val memoryPattern: Boolean? = null,
    /**
     * Null is [Optimization.ALL], but [Optimization.NONE] for parts with more than 1 GB of weights,
     * as `mtu-export run` does: otherwise weights lie in memory twice.
     */
    public val optimization: Optimization? = null,
    /** Further entries of the session's configuration. */
    public val entries: Map<String, String> = emptyMap(),
) {
    init {
        require(threads >= 0) { "threads must be at least 0, it is $threads" }
    }
}
