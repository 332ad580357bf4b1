package io.mtuexport.core.bench

import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Tensor
import java.io.File
import java.io.IOException
import java.util.concurrent.atomic.AtomicReference

/** A runtime for jobs, with what it is. */
public class JobEngine(
    /** `onnxruntime` or `executorch`. */
    public val name: String,
    /** Its version. */
    public val version: String,
    /** What opens parts. */
    public val runtime: PartRuntime,
)

/** What a result says of the program that measured. */
public class RunnerName(
    /** The program's name. */
    public val name: String,
    /** Its version. */
    public val version: String,
    /** The language, with its version. */
    public val language: String,
    /** The virtual machine that ran it. */
    public val compiler: String? = null,
    /** The C library of the process: `bionic` on Android. */
    public val libc: String? = null,
)

/**
 * Runs jobs of the benchmark suite: jobs, results, events and exit codes are those of
 * `runtime/android/runner/README.md`.
 *
 * Unlike the runner in C++ it has no child process: a crash of the engine ends the caller too, and
 * leaves no result. It takes neither `library` nor `cpus` other than `all`.
 *
 * @param engines By `engine` of a job: makes the engine for a number of threads (0 is its default)
 *   and the job's options. IllegalArgumentException is a bad job, [MtuException.RuntimeMissing] and
 *   LinkageError a missing engine.
 */
public class JobRunner(
    private val engines: Map<String, (threads: Int, options: Map<String, String>) -> JobEngine>,
    private val runner: RunnerName,
) {
    /**
     * Runs a job and writes its result, whole or not at all. Blocks until the job's deadline at
     * most; a call of the engine that lasts longer is left behind on a thread of its own.
     *
     * @param progress Takes the events, JSON without line ends.
     * @param outputs The folder of the job's `outputs`.
     * @return The exit code: 0, or 2 to 5.
     * @throws IOException Where the result cannot be written.
     */
    @Throws(IOException::class)
    public fun run(
        job: File,
        result: File,
        progress: ((String) -> Unit)? = null,
        outputs: File = job.absoluteFile.parentFile,
    ): Int {
        val report = JobReport(runner, progress)
        val run = AtomicReference<JobRun?>(null)
        var code = 0
        try {
            val read = JobReader(job).read()
            report.event("job", "deadline_s" to read.deadlineS)
            val failure = AtomicReference<Throwable?>(null)
            val worker =
                Thread(
                    {
                        try {
                            JobRun(read, engines, report, outputs).also(run::set).measure()
                        } catch (error: Throwable) {
                            failure.set(error)
                        }
                    },
                    "mtu-job",
                )
            worker.isDaemon = true
            worker.start()
            worker.join((read.deadlineS * 1000).toLong().coerceAtLeast(1))
            if (worker.isAlive) {
                report.close()
                run.get()?.interrupt()
                throw JobFailure(PART_FAILED, "no result in ${read.deadlineS} s")
            }
            failure.get()?.let { throw it }
            report.set("status", "measured")
        } catch (error: Throwable) {
            val failure = failureOf(error)
            code = failure.code
            report.fail(code, failure.message.orEmpty())
        }
        report.write(result)
        return code
    }

    private fun failureOf(error: Throwable): JobFailure =
        when (error) {
            is JobFailure -> error
            is OutOfMemoryError -> JobFailure(PART_FAILED, "out of memory", error)
            is InterruptedException -> JobFailure(PART_FAILED, "interrupted", error)
            else -> JobFailure(PART_FAILED, "unexpected: $error", error)
        }
}

/** One job's work. */
internal class JobRun(
    private val job: Job,
    private val engines: Map<String, (threads: Int, options: Map<String, String>) -> JobEngine>,
    private val report: JobReport,
    private val outputs: File,
) {
    private val sessions = ArrayList<PartSession>()

    fun interrupt(): Unit = sessions.toList().forEach(PartSession::interrupt)

    fun measure() {
        val memory = MemoryPhases()
        memory.end("start")
        val engine = engine()
        try {
            loadAll(engine, "loaded")
            memory.end("loaded")
            val registers = Registers(job, sessions)
            val before = Machine.clocks()
            for (number in 1..job.warmup + job.samples) {
                if (number > 1) Thread.sleep(job.cooldownMs)
                val counts = number > job.warmup
                report.sample(number, job.warmup + job.samples, sample(registers, counts), counts)
            }
            report.clocks(before, Machine.clocks())
            memory.end("run")
            finish(registers)
            report.set("memory", memory.document())
            if (job.loadAgain) {
                closeAll()
                loadAll(engine, "loaded again")
            }
        } finally {
            closeAll()
        }
    }

    private fun engine(): JobEngine {
        val make =
            engines[job.engine] ?: throw JobFailure(NO_ENGINE, "engine ${job.engine} is missing")
        val engine =
            try {
                make(job.threads, job.options)
            } catch (error: IllegalArgumentException) {
                throw JobFailure(BAD_JOB, "engine ${job.engine}: ${error.message}", error)
            } catch (error: MtuException.RuntimeMissing) {
                throw JobFailure(NO_ENGINE, error.message.orEmpty(), error)
            } catch (error: LinkageError) {
                throw JobFailure(NO_ENGINE, "engine ${job.engine} is missing: $error", error)
            }
        report.engine(engine, job.threads)
        return engine
    }

    private fun loadAll(engine: JobEngine, event: String) {
        for (part in job.parts) {
            val path = File(job.folder, part.path)
            val loaded =
                LoadedPart(
                    part.name,
                    path,
                    part.entry,
                    part.inputs,
                    part.outputs,
                    bytes = path.walk().filter(File::isFile).sumOf(File::length),
                    versions = emptyMap(),
                )
            val start = System.nanoTime()
            try {
                sessions += engine.runtime.open(loaded)
            } catch (error: MtuException.RuntimeMissing) {
                throw JobFailure(NO_ENGINE, error.message.orEmpty(), error)
            } catch (error: MtuException.OutOfMemory) {
                throw JobFailure(PART_FAILED, "part ${part.name}: out of memory", error)
            } catch (error: Exception) {
                throw JobFailure(BAD_FILE, "part ${part.name}: ${error.message}", error)
            }
            report.loaded(event, part.name, since(start))
        }
    }

    private fun sample(registers: Registers, counts: Boolean): Double =
        try {
            registers.sample(counts)
        } catch (error: IllegalArgumentException) {
            throw JobFailure(BAD_FILE, error.message.orEmpty(), error)
        } catch (error: RuntimeException) {
            throw JobFailure(PART_FAILED, error.message ?: error.toString(), error)
        } catch (error: MtuException) {
            throw JobFailure(PART_FAILED, error.message.orEmpty(), error)
        }

    private fun finish(registers: Registers) {
        val calls =
            job.parts.indices.associate { index ->
                val seconds = registers.seconds[index]
                job.parts[index].name to mapOf("count" to seconds.size, "seconds" to seconds)
            }
        report.set("calls", calls)
        val decibels =
            job.expected.mapValues { (register, name) ->
                val reference = checkNotNull(job.tensors).read(name) as Tensor.Floats
                decibels(register, reference.data, (registers.at(register) as Tensor.Floats).data)
            }
        report.set("psnr_db", decibels)
        if (job.outputs != null) {
            writeTensors(File(outputs, job.outputs), job.keep.associateWith(registers::at))
        }
    }

    private fun closeAll() {
        for (session in sessions.toList()) session.close()
        sessions.clear()
    }
}
