package io.mtuexport.executorch

import io.mtuexport.core.bench.JobEngine

/** ExecuTorch for jobs of the benchmark suite. */
public object ExecuTorchJobs {
    /**
     * The engine for a number of threads; there are no options.
     *
     * @throws IllegalArgumentException Of an option, and of a second number of threads in a
     *   process.
     */
    @JvmStatic
    public fun engine(threads: Int, options: Map<String, String>): JobEngine {
        require(options.isEmpty()) { "it has no option '${options.keys.first()}'" }
        return JobEngine(
            "executorch",
            ExecuTorchRuntime.COMPILED_AGAINST,
            ExecuTorchRuntime(threads),
        )
    }
}
