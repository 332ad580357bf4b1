package io.mtuexport.sample

import io.mtuexport.android.AndroidOnnx
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.Target
import io.mtuexport.core.bench.JobEngine
import io.mtuexport.executorch.ExecuTorchJobs
import io.mtuexport.executorch.ExecuTorchRuntime

/** The runtimes that this app brings. */
internal object Engines {
    /** The runtime of a bundle's target. */
    fun of(target: Target): PartRuntime =
        when (target) {
            Target.ONNX -> AndroidOnnx.runtime()
            Target.EXECUTORCH -> ExecuTorchRuntime()
            Target.COREML ->
                throw MtuException.RuntimeMissing(
                    target,
                    "Core ML",
                    "it is on Apple's devices alone",
                )
        }

    /** Those of jobs of the benchmark suite. */
    val ofJobs: Map<String, (threads: Int, options: Map<String, String>) -> JobEngine> =
        mapOf(
            "onnx" to { threads, options -> AndroidOnnx.jobEngine(threads, options) },
            "executorch" to ExecuTorchJobs::engine,
        )
}
