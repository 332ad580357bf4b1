package io.mtuexport.onnx

import io.mtuexport.core.bench.JobEngine

/** ONNX Runtime for jobs of the benchmark suite. */
public object OnnxJobs {
    /**
     * The engine for a number of threads and a job's options: `graph_optimization`, `arena` (of
     * which the memory pattern is part), and session config entries.
     *
     * @throws io.mtuexport.core.MtuException.RuntimeMissing Where ONNX Runtime is not there.
     */
    @JvmStatic
    public fun engine(threads: Int, options: Map<String, String>): JobEngine {
        val arena = options["arena"] != "0"
        val runtime =
            OnnxRuntime(
                OnnxOptions(
                    threads = threads,
                    arena = arena,
                    memoryPattern = arena,
                    optimization =
                        if (options["graph_optimization"] == "none") Optimization.NONE
                        else Optimization.ALL,
                    entries = options - setOf("arena", "graph_optimization"),
                )
            )
        return JobEngine("onnxruntime", OnnxRuntime.version, runtime)
    }
}
