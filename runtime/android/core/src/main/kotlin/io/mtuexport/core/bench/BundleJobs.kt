package io.mtuexport.core.bench

import io.mtuexport.core.ElementType
import io.mtuexport.core.GOLDENS
import io.mtuexport.core.Json
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.Part
import io.mtuexport.core.Task
import io.mtuexport.core.TensorSpec
import java.io.File
import java.io.IOException
import java.nio.file.Files

/** How the parts of a bundle are measured. */
public class BenchSettings
@JvmOverloads
constructor(
    /** Threads of the engine; 0 is its own default. */
    public val threads: Int = 0,
    /** Samples of a round; 0 takes as many as the work of one allows. */
    public val samples: Int = 0,
    /** `quick` or `full`: how many samples are taken where their number is not given. */
    public val mode: String = "quick",
    /** Options of the engine. */
    public val options: Map<String, String> = emptyMap(),
    /** Seconds that a job may take. */
    public val deadlineS: Double = 1800.0,
)

/** The jobs of a bundle: each part on its goldens. A whole picture is no job here. */
public class BundleJobs(private val bundle: ModelBundle, private val settings: BenchSettings) {
    private val goldens =
        bundle.goldens ?: throw MtuException.RequestRefused("the bundle has no goldens")

    /** The parts that a task calls and that the bundle has, in the order of the flow. */
    public fun parts(task: String): List<String> =
        bundle.task(task).flow.calls.map { it.part }.distinct().filter { bundle.part(it) != null }

    /**
     * Writes the job that measures a part on its first golden input into an empty [folder], with a
     * link to the bundle; returns its file.
     */
    @Throws(IOException::class)
    public fun measure(folder: File, task: String, part: String): File {
        val record = checkNotNull(bundle.part(part))
        val samples = if (settings.samples > 0) settings.samples else samplesFor(record.flopsTotal)
        val extra = mapOf("samples" to samples, "warmup" to 1, "load_again" to true)
        return write(folder, bundle.task(task), record, listOf(0), emptyMap(), extra)
    }

    /** Writes the job that compares a part with all its goldens. */
    @Throws(IOException::class)
    public fun check(folder: File, task: String, part: String): File {
        val record = checkNotNull(bundle.part(part))
        val expected = LinkedHashMap<String, String>()
        for (case in 0 until CASES) for (output in record.outputs) {
            expected[register(case, output.name)] =
                golden(record, bundle.task(task), case, output.name)
        }
        return write(
            folder,
            bundle.task(task),
            record,
            0 until CASES,
            expected,
            mapOf("samples" to 1),
        )
    }

    private fun write(
        folder: File,
        task: Task,
        part: Part,
        cases: Iterable<Int>,
        expected: Map<String, String>,
        extra: Map<String, Any>,
    ): File {
        val target = bundle.folder.absoluteFile.toPath()
        Files.createSymbolicLink(File(folder, LINK).toPath(), target)
        val job =
            mapOf(
                "format" to 1,
                "engine" to bundle.target.label,
                "options" to settings.options,
                "threads" to settings.threads,
                "parts" to mapOf(part.name to document(part, task)),
                "tensors" to "$LINK/$GOLDENS",
                "program" to cases.map { call(part, task, it) },
                "expected" to expected,
                "deadline_s" to settings.deadlineS,
            ) + extra
        return File(folder, "job.json").also { it.writeText(Json.write(job)) }
    }

    private fun document(part: Part, task: Task) =
        mapOf(
            "path" to "$LINK/${part.file.path}",
            "entry" to part.entries.getValue(task.name),
            "inputs" to part.inputsOf(task.name).map(::document),
            "outputs" to part.outputs.map(::document),
        )

    private fun document(spec: TensorSpec) =
        mapOf(
            "name" to spec.name,
            "shape" to spec.shape.toList(),
            "dtype" to if (spec.type == ElementType.FLOAT32) "float32" else "int32",
        )

    private fun call(part: Part, task: Task, case: Int) =
        mapOf(
            "op" to "call",
            "part" to part.name,
            "inputs" to
                part.inputsOf(task.name).associate { it.name to golden(part, task, case, it.name) },
            "outputs" to part.outputs.associate { it.name to register(case, it.name) },
        )

    /** The name of a golden: those of an entry are under the first task that has it. */
    private fun golden(part: Part, task: Task, case: Int, tensor: String): String {
        val entry = part.entries.getValue(task.name)
        val proven = part.entries.keys.filter { part.entries[it] == entry }
        val names = proven.map { "${part.name}/$it/$case/$tensor" }
        return names.firstOrNull { it in goldens.names }
            ?: throw MtuException.RequestRefused(
                "$GOLDENS has no case of ${part.name} for task ${task.name}"
            )
    }

    private fun samplesFor(flops: Long): Int {
        val (least, most, budget) = if (settings.mode == "full") FULL else QUICK
        return (budget / Math.max(1, flops)).coerceIn(least, most).toInt()
    }

    internal companion object {
        private const val LINK = "bundle"
        const val CASES = 3

        // Fewest and most samples, and the work that all may have together.
        private val QUICK = listOf(3L, 20L, 2_000_000_000_000)
        private val FULL = listOf(10L, 50L, 10_000_000_000_000)

        /** The register of an output; it is the name of a check too. */
        fun register(case: Int, output: String) = "$output, case $case"
    }
}
