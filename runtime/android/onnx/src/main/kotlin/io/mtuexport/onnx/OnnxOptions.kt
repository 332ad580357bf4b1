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
     * Whether what a run needs beside the weights is kept for the next run; by default it is given
     * back. The README of this module has what both cost.
     */
    public val arena: Boolean = false,
    /**
     * Whether what a run needs is asked for as one block. Null is yes, but for parts with more than
     * 1 GB of weights beside the graph.
     */
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
