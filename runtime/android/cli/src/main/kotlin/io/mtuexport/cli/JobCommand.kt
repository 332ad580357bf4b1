package io.mtuexport.cli

import io.mtuexport.core.bench.JobRunner
import io.mtuexport.core.bench.RunnerName
import io.mtuexport.executorch.ExecuTorchJobs
import io.mtuexport.onnx.OnnxJobs
import java.io.File
import java.io.IOException
import java.io.PrintStream

/** `job`: one job of the benchmark suite; its files and exit codes are those of `mtu-bench`. */
internal object JobCommand :
    Command(
        "job",
        "JOB.json -o RESULT.json [FLAGS]",
        "Run one job of the benchmark suite.\n" +
            "Files and exit codes are those of runtime/android/runner/README.md.",
        listOf(JobFlags.RESULT, JobFlags.PROGRESS, Engines.SDK),
    ) {
    override fun run(words: Words, out: PrintStream, err: PrintStream): Int {
        val job = File(only(words, "JOB"))
        val result =
            File(words.text(JobFlags.RESULT) ?: throw Refusal("Missing option '-o' / '--output'."))
        val engines =
            mapOf(
                "onnx" to OnnxJobs::engine,
                "executorch" to
                    { threads: Int, options: Map<String, String> ->
                        Engines.nameFolder(words)
                        ExecuTorchJobs.engine(threads, options)
                    },
            )
        val progress =
            if (words.has(JobFlags.PROGRESS)) { line: String -> err.println(line) } else null
        return try {
            JobRunner(engines, PROGRAM).run(job, result, progress)
        } catch (error: IOException) {
            val name = quotedPath(result.path)
            throw Refusal("cannot write $name: ${reasonOf(error)}", cause = error)
        }
    }

    /** What results and records say of this program. */
    val PROGRAM: RunnerName =
        RunnerName(
            name = "mtu-cli",
            version = VERSION,
            language = "Kotlin ${KotlinVersion.CURRENT}",
            compiler =
                "${System.getProperty("java.vm.name")} ${System.getProperty("java.vm.version")}",
        )
}

/** The flags of `job`. */
internal object JobFlags {
    val RESULT = Flag(Command.OUTPUT, "Result to write.", "RESULT.json")
    val PROGRESS = Flag("--progress", "Write events to standard error, JSON, one a line.")
}
