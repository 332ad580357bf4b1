package io.mtuexport.cli

import io.mtuexport.core.Target
import io.mtuexport.core.bench.BenchRecord
import io.mtuexport.core.bench.BenchSettings
import io.mtuexport.core.bench.BundleJobs
import java.io.File
import java.io.PrintStream
import java.nio.file.Files
import java.util.concurrent.TimeUnit

/** `bench`: what the parts of a bundle cost in Java on this machine. */
internal object BenchCommand :
    Command(
        "bench",
        "BUNDLE -o RECORD.json [FLAGS]",
        "Measure the parts of a bundle on this machine and check them.\n" +
            "The record fits runtime/bench.schema.json. A round is a process of its own, and so " +
            "is the check.\n" +
            "Exit 1: a part is below its floor or failed.",
        BenchFlags.ALL,
    ) {
    private const val GRACE_S = 30L
    private val ROUNDS = mapOf("quick" to 3, "full" to 5)
    private val COUNTS = 1L..100L
    private val SAMPLES = 1L..10_000L
    private val THREADS = 0L..256L

    override fun run(words: Words, out: PrintStream, err: PrintStream): Int {
        val mode = words.text(BenchFlags.MODE) ?: "quick"
        val rounds =
            words.whole(BenchFlags.ROUNDS, COUNTS)?.toInt()
                ?: ROUNDS[mode]
                ?: throw unknown("mode", mode, ROUNDS.keys)
        val settings =
            BenchSettings(
                threads = words.whole(BenchFlags.THREADS, THREADS)?.toInt() ?: 0,
                samples = words.whole(BenchFlags.SAMPLES, SAMPLES)?.toInt() ?: 0,
                mode = mode,
                options = words.all(BenchFlags.OPTION).associate(::option),
            )
        val folder = File(only(words, "BUNDLE"))
        val output = words.text(BenchFlags.RECORD)?.let(::File)
        if (output != null) requireWritable(output, words.has(FORCE))
        val bundle = openBundle(folder)
        Engines.require(bundle.target, words)
        val jobs = ofBundle { BundleJobs(bundle, settings) }
        val record = BenchRecord(bundle, JobCommand.PROGRAM, mode)
        val tasks = chosen("task", words.all(BenchFlags.TASK), bundle.tasks.map { it.name })
        val all = tasks.flatMap { task -> jobs.parts(task).map { task to it } }
        val parts = chosen("part", words.all(BenchFlags.PART), all.map { it.second }.distinct())
        val measured = all.filter { it.second in parts }
        val failures =
            measured.mapNotNull { (task, part) ->
                val turns = Turns(jobs, rounds, settings, bundle.target, words, err)
                ofBundle { measured(turns, record, task, part) }
            }
        if (output != null) writeWhole(output) { it.writeText(record.text()) }
        if (output == null || words.has(JSON)) out.print(record.text())
        else out.println("${output.path}: ${measured.size} parts")
        if (failures.isNotEmpty()) throw Refusal(failures.first(), BELOW_FLOOR)
        return 0
    }

    private fun option(text: String): Pair<String, String> {
        val (name, value) = text.substringBefore('=', "") to text.substringAfter('=', "")
        if (name.isEmpty() || value.isEmpty())
            throw Refusal("--option takes NAME=VALUE, got ${quoted(text)}")
        return name to value
    }

    private fun chosen(kind: String, names: List<String>, legal: List<String>): List<String> {
        names.firstOrNull { it !in legal }?.let { throw unknown(kind, it, legal) }
        return names.ifEmpty { legal }
    }

    private fun measured(turns: Turns, record: BenchRecord, task: String, part: String): String? {
        val scratch =
            Drafts.begun({ Files.createTempDirectory("mtu-bench-").toFile() }, ::removeTree)
        try {
            val results = turns.all(scratch, task, part)
            return record.add(task, part, results.dropLast(1), results.last())
        } finally {
            removeTree(scratch)
            Drafts.remove(scratch)
        }
    }

    /** The rounds of a part and its check, one process each. */
    private class Turns(
        private val jobs: BundleJobs,
        private val rounds: Int,
        private val settings: BenchSettings,
        private val target: Target,
        private val words: Words,
        private val err: PrintStream,
    ) {
        fun all(scratch: File, task: String, part: String): List<File> =
            (0..rounds).map { number ->
                val name = if (number < rounds) "round ${number + 1} of $rounds" else "check"
                if (words.has(VERBOSE)) err.println("${plain(task)} ${plain(part)}: $name")
                val folder = File(scratch, "$number").also { it.mkdir() }
                val job =
                    if (number < rounds) jobs.measure(folder, task, part)
                    else jobs.check(folder, task, part)
                File(folder, "result.json").also { process(job, it) }
            }

        private fun process(job: File, result: File) {
            val java = File(System.getProperty("java.home"), "bin/java").path
            val program =
                listOf(
                    java,
                    "-cp",
                    System.getProperty("java.class.path"),
                    "io.mtuexport.cli.MainKt",
                )
            val sdk =
                if (target == Target.EXECUTORCH) listOf(Engines.SDK.name, Engines.folder(words))
                else emptyList()
            val log = File(job.parentFile, "log")
            val builder =
                ProcessBuilder(program + listOf("job", job.path, "-o", result.path) + sdk)
                    .redirectErrorStream(true)
                    .redirectOutput(log)
            val process = Drafts.begun({ builder.start() }) { it.destroyForcibly().waitFor() }
            process.outputStream.close()
            try {
                if (!process.waitFor(settings.deadlineS.toLong() + GRACE_S, TimeUnit.SECONDS))
                    result.delete()
            } finally {
                process.destroyForcibly().waitFor()
                Drafts.remove(process)
            }
            if (words.has(VERBOSE)) log.forEachLine { err.println(plain(it)) }
        }
    }
}

/** The flags of `bench`. */
internal object BenchFlags {
    val RECORD =
        Flag(Command.OUTPUT, "Record to write, JSON. Default: standard output.", "FILE.json")
    val MODE =
        Flag(
            "--mode",
            "quick: 3 rounds and a few samples; full: 5 rounds and more samples.",
            "quick|full",
        )
    val TASK =
        Flag(
            "--task",
            "Task to measure, by name; repeat for more. Default: all of a bundle.",
            "NAME",
        )
    val PART = Flag("--part", "Part to measure, by name; repeat for more. Default: all.", "NAME")
    val THREADS = Flag("--threads", "Threads of the engine; 0 is its own default.", "N")
    val ROUNDS = Flag("--rounds", "Rounds in place of the mode's.", "N")
    val SAMPLES = Flag("--samples", "Samples of a round in place of the mode's.", "N")
    val OPTION =
        Flag(
            "--option",
            "Option of the engine, such as a session config entry of ONNX Runtime; " +
                "repeat for more.",
            "NAME=VALUE",
        )
    val ALL =
        listOf(
            RECORD,
            MODE,
            TASK,
            PART,
            THREADS,
            ROUNDS,
            SAMPLES,
            OPTION,
            Engines.SDK,
            Command.FORCE,
        )
}
