package io.mtuexport.core.bench

import io.mtuexport.core.Json
import io.mtuexport.core.JsonObject
import io.mtuexport.core.MANIFEST
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Part
import java.io.File
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

/**
 * A record of `runtime/bench.schema.json` as it grows. It holds parts alone: neither whole pictures
 * nor baselines nor the large matrix product.
 */
public class BenchRecord(
    private val bundle: ModelBundle,
    private val program: RunnerName,
    mode: String,
) {
    private val document: JsonObject =
        Json.parseObject(File(bundle.folder, MANIFEST).readBytes(), MANIFEST)
    private val measurements = ArrayList<Map<String, Any?>>()
    private val head =
        linkedMapOf<String, Any?>(
            "format" to "1.0",
            "created" to now(),
            "mode" to mode,
            "mtu_export" to program.version,
            "commit" to null,
            "versions" to emptyMap<String, String>(),
            "device" to Host.describe(),
        )

    /**
     * Adds a part.
     *
     * @param rounds The results of its rounds; one that failed makes the measurement a failed one.
     * @param check The result of its check.
     * @return The first output below its floor, with its dB; or why it failed; null where all is
     *   well.
     */
    public fun add(task: String, part: String, rounds: List<File>, check: File): String? {
        val results = rounds.map(::result)
        val compared = result(check)
        val record = checkNotNull(bundle.part(part))
        val failed = (results + compared).firstOrNull { it["status"] != "measured" }
        val begin =
            linkedMapOf<String, Any?>(
                "kind" to "bundle",
                "bundle" to describeBundle(),
                "task" to task,
                "part" to part,
                "status" to if (failed == null) "measured" else "failed",
                "reason" to failed?.get("reason"),
            )
        if (failed != null) {
            measurements += begin
            return "$task $part failed: ${failed["reason"]}"
        }
        val checks = checks(record, compared)
        measurements += begin + numbers(record, results) + mapOf("checks" to checks)
        val below = checks.firstOrNull { it["passed"] == false } ?: return null
        val decibels = String.format(Locale.ROOT, "%.1f", below["psnr_db"])
        return "$task $part: ${below["name"]}: $decibels dB, floor ${below["floor_db"]} dB"
    }

    /** The record as JSON. */
    public fun text(): String {
        val notes =
            listOf("parts alone, measured in Java: no whole pictures, baselines or matrix product")
        return Json.write(head + mapOf("measurements" to measurements, "notes" to notes)) + "\n"
    }

    private fun result(file: File): JsonObject =
        if (file.isFile) Json.parseObject(file.readBytes(), file.name)
        else mapOf("status" to "failed", "reason" to "the process has ended without a result")

    private fun describeBundle(): Map<String, Any?> {
        val source = document["source"] as Map<*, *>
        val parts = document["parts"] as List<*>
        return mapOf(
            "name" to bundle.name,
            "manifest_sha256" to bundle.manifestSha256,
            "source" to source["name"],
            "source_sha256" to source["sha256"],
            "target" to bundle.target.label,
            "scheme" to (document["scheme"] as Map<*, *>)["name"],
            "height" to bundle.height,
            "width" to bundle.width,
            "tasks" to bundle.tasks.map { it.name },
            "bytes" to parts.sumOf { (it as Map<*, *>)["bytes"] as Double },
            "options" to document["options"],
            "versions" to bundle.versions,
        )
    }

    private fun numbers(part: Part, results: List<JsonObject>): Map<String, Any?> {
        val last = results.last()
        val rounds = results.map(::round)
        val samples = rounds.flatMap { numbersOf(it["samples_s"]) }
        val median = quantile(samples, 0.5)
        return linkedMapOf(
            "runner" to
                mapOf(
                    "name" to program.name,
                    "version" to program.version,
                    "detail" to listOfNotNull(program.language, program.compiler).joinToString(),
                ),
            "engine" to last["engine"],
            "threads" to last["threads"],
            "mask" to last["mask"],
            "work" to
                mapOf(
                    "bytes" to
                        part.file.bytes +
                            bundle.manifest.files
                                .filter { it.path in part.data }
                                .sumOf { it.bytes },
                    "parameters" to part.parameters,
                    "flops_conv_linear" to part.flopsConvLinear,
                    "flops_total" to part.flopsTotal,
                ),
            "rounds" to rounds,
            "latency" to
                mapOf(
                    "median" to median,
                    "p90" to quantile(samples, 0.9),
                    "min" to samples.minOrNull(),
                    "count" to samples.size,
                    "rounds" to rounds.map { quantile(numbersOf(it["samples_s"]), 0.5) },
                ),
            "gflops" to if (median > 0) part.flopsTotal / median / 1e9 else null,
            "memory" to last["memory"],
        )
    }

    private fun round(result: JsonObject): Map<String, Any?> =
        mapOf(
            "load_s" to (result["load_s"] as Map<*, *>).values.sumOf { it as Double },
            "load_again_s" to (result["load_again_s"] as Map<*, *>).values.sumOf { it as Double },
            "first_s" to result["first_s"],
            "samples_s" to result["samples_s"],
        )

    private fun checks(part: Part, result: JsonObject): List<Map<String, Any?>> {
        val stages =
            bundle.manifest.proof.filter {
                it.part == part.name && it.stage in setOf("quantised", "exported")
            }
        val floor = stages.maxByOrNull { if (it.stage == "quantised") 1 else 0 }?.floorDb ?: 0.0
        return (result["psnr_db"] as Map<*, *>).map { (name, decibels) ->
            val passed = (decibels as Double) >= floor
            mapOf("name" to name, "psnr_db" to decibels, "floor_db" to floor, "passed" to passed)
        }
    }

    private fun numbersOf(value: Any?): List<Double> = (value as List<*>).map { it as Double }

    /** Between the samples beside it, as numpy's. */
    private fun quantile(samples: List<Double>, share: Double): Double {
        val sorted = samples.sorted()
        val place = share * (sorted.size - 1)
        val below = Math.floor(place).toInt()
        val above = Math.min(below + 1, sorted.size - 1)
        return sorted[below] + (place - below) * (sorted[above] - sorted[below])
    }

    private fun now(): String =
        SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'+00:00'", Locale.ROOT)
            .also { it.timeZone = TimeZone.getTimeZone("UTC") }
            .format(Date())
}

/** This machine for a record, as Linux tells of it. */
internal object Host {
    private val EXTENSIONS =
        listOf("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")

    fun describe(): Map<String, Any?> {
        val fields =
            Machine.text(File("/proc/cpuinfo"))
                .orEmpty()
                .substringBefore("\n\n")
                .lineSequence()
                .associate { it.substringBefore(':').trim() to it.substringAfter(':', "").trim() }
        val flags = (fields["flags"] ?: fields["Features"]).orEmpty().split(' ')
        val machine = Machine.describe().orEmpty()
        val arch = machine["arch"] ?: System.getProperty("os.arch").orEmpty()
        return mapOf(
            "kind" to "host",
            "model" to (fields["model name"] ?: arch),
            "os" to "${System.getProperty("os.name")} ${System.getProperty("os.version")}",
            "arch" to arch,
            "cores" to Runtime.getRuntime().availableProcessors(),
            "memory" to memory(),
            "page_size" to machine["page_size"],
            "governor" to machine["governor"],
            "instructions" to EXTENSIONS.filter { it in flags },
        )
    }

    private fun memory(): Long? =
        Machine.text(File("/proc/meminfo"))
            ?.lineSequence()
            ?.firstOrNull { it.startsWith("MemTotal:") }
            ?.filter { it in '0'..'9' }
            ?.toLongOrNull()
            ?.times(1024)
}
