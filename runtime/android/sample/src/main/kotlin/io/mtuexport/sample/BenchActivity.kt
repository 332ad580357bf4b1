package io.mtuexport.sample

import android.app.Activity
import android.os.Build
import android.os.Bundle
import android.os.Process
import android.util.Log
import android.view.WindowManager
import android.widget.TextView
import io.mtuexport.core.bench.JobRunner
import io.mtuexport.core.bench.RunnerName
import java.io.FileWriter
import java.io.IOException

/**
 * Runs one job of the benchmark suite; `runtime/android/runner/README.md` says how it is started
 * and what it leaves. The process ends with the job, so that the next one begins as this one did.
 */
public class BenchActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        val text = TextView(this)
        setContentView(text)
        if (isBegun) return // the screen was turned or resized
        isBegun = true
        @Suppress("DEPRECATION") // the media folder is what both the shell and this app can use
        val request =
            BenchRequest.of(
                externalMediaDirs.firstOrNull(),
                intent.getStringExtra("job"),
                intent.getStringExtra("id"),
            )
        if (request == null) {
            Log.e(
                TAG,
                "bench: --es job needs an absolute path, --es id letters, digits, '-' and '_'",
            )
            end()
            return
        }
        Thread({ work(request, text) }, "mtu-bench").start()
    }

    private fun work(request: BenchRequest, text: TextView) {
        var code = -1
        try {
            request.folder.mkdirs()
            request.result.delete()
            FileWriter(request.progress).use { lines ->
                val tell = { line: String ->
                    lines.write(line + "\n")
                    lines.flush()
                    runOnUiThread { text.text = line }
                }
                tell("{\"event\":\"started\",\"pid\":${Process.myPid()}}")
                code =
                    JobRunner(Engines.ofJobs, name())
                        .run(request.job, request.result, tell, request.folder)
            }
        } catch (error: IOException) {
            Log.e(TAG, "bench: $error")
        }
        Log.i(TAG, "bench: ended with $code")
        runOnUiThread(::end)
    }

    private fun end() {
        finishAndRemoveTask()
        Process.killProcess(Process.myPid())
    }

    private fun name() =
        RunnerName(
            name = "mtu-sample",
            version = packageManager.getPackageInfo(packageName, 0).versionName ?: "unknown",
            language = "Kotlin ${KotlinVersion.CURRENT}",
            compiler =
                "ART ${System.getProperty("java.vm.version")}, Android ${Build.VERSION.RELEASE}",
            libc = "bionic",
        )

    private companion object {
        const val TAG = "mtu"

        // Of the process, which takes one job.
        var isBegun = false
    }
}
