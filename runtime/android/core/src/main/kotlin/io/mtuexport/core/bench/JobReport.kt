package io.mtuexport.core.bench

import io.mtuexport.core.Json
import java.io.File
import java.io.IOException

/** The result of a job as it grows, and the events of it. Both threads of a run use it. */
internal class JobReport(runner: RunnerName, private val progress: ((String) -> Unit)?) {
    private val members =
        linkedMapOf<String, Any?>(
            "format" to 1,
            "status" to "failed",
            "reason" to null,
            "runner" to
                linkedMapOf(
                    "name" to runner.name,
                    "version" to runner.version,
                    "language" to runner.language,
                    "compiler" to runner.compiler,
                    "libc" to runner.libc,
                ),
            "engine" to null,
            "threads" to null,
            "mask" to null,
            "load_s" to emptyMap<String, Double>(),
            "load_again_s" to emptyMap<String, Double>(),
            "first_s" to null,
            "samples_s" to emptyList<Double>(),
            "calls" to emptyMap<String, Any>(),
            "memory" to null,
            "psnr_db" to emptyMap<String, Double>(),
            "machine" to machine(null, null),
        )
    private val loads =
        mapOf("loaded" to LinkedHashMap<String, Double>(), "loaded again" to LinkedHashMap())
    private val samples = ArrayList<Double>()
    private var isClosed = false

    private fun machine(before: List<Long>?, after: List<Long>?): Map<String, Any?>? =
        Machine.describe()?.also {
            it["clocks_khz"] = linkedMapOf("before" to before, "after" to after)
        }

    /** After this a worker that was left behind changes nothing. */
    @Synchronized
    fun close() {
        isClosed = true
    }

    @Synchronized
    fun set(key: String, value: Any?) {
        if (!isClosed) members[key] = value
    }

    @Synchronized
    fun event(name: String, vararg values: Pair<String, Any?>) {
        if (!isClosed)
            progress?.invoke(Json.write(linkedMapOf<String, Any?>("event" to name, *values)))
    }

    @Synchronized
    fun engine(engine: JobEngine, threads: Int) {
        set("engine", linkedMapOf("name" to engine.name, "version" to engine.version))
        set("threads", threads)
        set("mask", Machine.mask())
        event(
            "engine",
            "name" to engine.name,
            "version" to engine.version,
            "threads" to threads,
            "mask" to Machine.mask(),
        )
    }

    @Synchronized
    fun loaded(event: String, part: String, seconds: Double) {
        loads.getValue(event)[part] = seconds
        set(
            if (event == "loaded") "load_s" else "load_again_s",
            LinkedHashMap(loads.getValue(event)),
        )
        event(event, "part" to part, "seconds" to seconds)
    }

    @Synchronized
    fun sample(number: Int, of: Int, seconds: Double, counts: Boolean) {
        if (number == 1) set("first_s", seconds)
        if (counts) samples += seconds
        set("samples_s", ArrayList(samples))
        event("sample", "number" to number, "of" to of, "seconds" to seconds, "warmup" to !counts)
    }

    @Synchronized
    fun clocks(before: List<Long>?, after: List<Long>?): Unit =
        set("machine", machine(before, after))

    @Synchronized
    fun fail(code: Int, reason: String) {
        isClosed = false
        val line =
            reason
                .map { if (it < ' ' || it == '\u007F') ' ' else it }
                .joinToString("")
                .trim()
                .take(600)
        set("reason", line)
        event("failed", "code" to code, "reason" to line)
        isClosed = true
    }

    @Synchronized
    @Throws(IOException::class)
    fun write(file: File): Unit = replaceFile(file, (Json.write(members) + "\n").toByteArray())
}

/** Memory at the end of each phase of a run. */
internal class MemoryPhases {
    private val phases = LinkedHashMap<String, Map<String, Any?>>()
    private var hasPeak = Machine.resetPeak()
    private var total: Long? = null

    fun end(phase: String) {
        val memory = Machine.memory()
        val peak = memory["peak"] as Long?
        if (peak != null) total = Math.max(total ?: 0, peak)
        if (!hasPeak) memory["peak"] = null
        phases[phase] = memory
        hasPeak = Machine.resetPeak()
    }

    fun document(): Map<String, Any?> =
        LinkedHashMap<String, Any?>(phases).also { it["peak_total"] = total }
}
