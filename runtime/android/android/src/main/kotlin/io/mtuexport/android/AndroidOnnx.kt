package io.mtuexport.android

import android.system.Os
import io.mtuexport.core.bench.JobEngine
import io.mtuexport.onnx.OnnxJobs
import io.mtuexport.onnx.OnnxOptions
import io.mtuexport.onnx.OnnxRuntime

/**
 * ONNX Runtime on Android. Needs the module `onnx` and
 * `com.microsoft.onnxruntime:onnxruntime-android`.
 */
public object AndroidOnnx {
    /**
     * The runtime, with telemetry off: builds of ONNX Runtime from 1.29 on send it unless the
     * variable `ORT_DISABLE_TELEMETRY` is set before their library is loaded. So call this before
     * anything else of the app touches ONNX Runtime.
     *
     * @throws android.system.ErrnoException Where the variable cannot be set.
     */
    @JvmStatic
    @JvmOverloads
    public fun runtime(options: OnnxOptions = OnnxOptions()): OnnxRuntime {
        quiet()
        return OnnxRuntime(options)
    }

    /** [OnnxJobs.engine], with telemetry off as in [runtime]. */
    @JvmStatic
    public fun jobEngine(threads: Int, options: Map<String, String>): JobEngine {
        quiet()
        return OnnxJobs.engine(threads, options)
    }

    private fun quiet(): Unit = Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)
}
