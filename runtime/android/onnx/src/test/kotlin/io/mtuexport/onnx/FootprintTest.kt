package io.mtuexport.onnx

import com.sun.management.OperatingSystemMXBean
import io.mtuexport.core.ElementType
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import io.mtuexport.core.psnrDb
import io.mtuexport.testkit.TestData
import java.io.File
import java.lang.management.ManagementFactory
import java.util.concurrent.TimeUnit
import kotlin.system.exitProcess
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.condition.EnabledIfSystemProperty

/**
 * Measures what arena and memory pattern cost and bring, on a bundle of any size; it is not run
 * unless one is named:
 * ```
 * mvn -B -pl onnx -am test -Dtest=FootprintTest -Dsurefire.failIfNoSpecifiedTests=false \
 *     -Dmtu.footprint=BUNDLE -Dmtu.footprint.part=unet -Dmtu.footprint.optimization=ALL
 * ```
 *
 * Each setting has a process of its own: load, [RUNS] runs on a golden, close. A line says seconds
 * by the clock and of all CPUs together, and resident memory from `/proc/self/status`.
 */
class FootprintTest {
    @Test
    @EnabledIfSystemProperty(
        named = "mtu.footprint",
        matches = ".+",
        disabledReason = "-Dmtu.footprint names no bundle",
    )
    fun `arena and memory pattern, each in a process of its own`() {
        val bundle = System.getProperty("mtu.footprint")
        val part = System.getProperty("mtu.footprint.part", "unet")
        println(
            "$part of ${File(bundle).name}, ONNX Runtime ${OnnxRuntime.version}, ${Runtime.getRuntime().availableProcessors()} CPUs"
        )
        println(
            "malloc | arena pattern | load s | first s | then s (CPU s) | MiB loaded, peak of load | MiB after, peak of the runs | MiB closed | dB"
        )
        val optimization = System.getProperty("mtu.footprint.optimization", "ALL")
        for (malloc in listOf("", "131072")) {
            for ((arena, pattern) in
                listOf(true to true, true to false, false to true, false to false)) {
                assertEquals(0, child(malloc, bundle, part, "$arena", "$pattern", optimization))
            }
        }
    }

    /**
     * [malloc] is the size from which glibc gives memory back when it is freed; by itself it raises
     * that size up to 32 MiB, and then keeps most of a part that was closed.
     */
    private fun child(malloc: String, vararg arguments: String): Int {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val path =
            System.getProperty("surefire.test.class.path") ?: System.getProperty("java.class.path")
        val command = listOf(java, "-cp", path, Footprint::class.java.name) + arguments
        val builder = ProcessBuilder(command).redirectErrorStream(true)
        if (malloc.isNotEmpty()) builder.environment()["MALLOC_MMAP_THRESHOLD_"] = malloc
        val process = builder.start()
        process.inputStream.bufferedReader().forEachLine(::println)
        assertTrue(process.waitFor(1, TimeUnit.HOURS))
        return process.exitValue()
    }
}

/** The measured process. */
internal object Footprint {
    private const val RUNS = 4

    @JvmStatic
    fun main(arguments: Array<String>) {
        val (folder, name, arena, pattern, optimization) = arguments
        val bundle = TestData(File(folder))
        val manifest = bundle.json("manifest.json") as Map<*, *>
        val part =
            (manifest["parts"] as List<*>).map { it as Map<*, *> }.first { it["name"] == name }
        val (task, entry) = (part["entries"] as Map<*, *>).entries.first()
        val loaded =
            LoadedPart(
                name,
                File(folder, part["path"] as String),
                entry as String,
                specs(part["inputs"]),
                specs(part["outputs"]),
                (part["bytes"] as Double).toLong(),
                emptyMap(),
            )
        val golden =
            bundle
                .tensors("goldens.safetensors")
                .filterKeys { it.startsWith("$name/$task/0/") }
                .mapKeys { it.key.substringAfterLast("/0/") }
        measure(
            loaded,
            golden,
            OnnxOptions(
                arena = arena.toBoolean(),
                memoryPattern = pattern.toBoolean(),
                optimization = Optimization.valueOf(optimization),
            ),
            "$arena $pattern",
        )
        exitProcess(0)
    }

    private fun measure(
        part: LoadedPart,
        golden: Map<String, Tensor>,
        options: OnnxOptions,
        label: String,
    ) {
        OnnxRuntime.version // loads the library
        resetPeak()
        val begin = System.nanoTime()
        val session = OnnxRuntime(options).open(part)
        val load = seconds(begin)
        val loaded = listOf(mebibytes("VmRSS"), mebibytes("VmHWM"))
        resetPeak()
        val wall = ArrayList<Double>()
        val cpu = ArrayList<Double>()
        var outputs = emptyMap<String, Tensor.Floats>()
        repeat(RUNS) {
            val from = System.nanoTime()
            val used = cpuSeconds()
            outputs = session.run(part.inputs.associate { it.name to golden.getValue(it.name) })
            wall += seconds(from)
            cpu += cpuSeconds() - used
        }
        val after = listOf(mebibytes("VmRSS"), mebibytes("VmHWM"))
        session.close()
        val db =
            part.outputs.minOf {
                psnrDb(golden.getValue(it.name) as Tensor.Floats, outputs.getValue(it.name))
            }
        val malloc = System.getenv("MALLOC_MMAP_THRESHOLD_") ?: "glibc's"
        println(
            "$malloc | %s | %.1f | %.1f | %.1f (%.1f) | %d %d | %d %d | %d | %.1f"
                .format(
                    label,
                    load,
                    wall.first(),
                    wall.drop(1).min(),
                    cpu.drop(1).min(),
                    loaded[0],
                    loaded[1],
                    after[0],
                    after[1],
                    mebibytes("VmRSS"),
                    db,
                )
        )
    }

    private fun specs(list: Any?) =
        (list as List<*>).map {
            it as Map<*, *>
            val shape =
                (it["shape"] as List<*>).map { extent -> (extent as Double).toInt() }.toIntArray()
            TensorSpec(
                it["name"] as String,
                shape,
                ElementType.valueOf((it["dtype"] as String).uppercase()),
            )
        }

    private fun seconds(begin: Long) = (System.nanoTime() - begin) / 1e9

    private fun cpuSeconds() =
        (ManagementFactory.getOperatingSystemMXBean() as OperatingSystemMXBean).processCpuTime / 1e9

    private fun resetPeak() = File("/proc/self/clear_refs").writeText("5")

    private fun mebibytes(field: String): Long =
        File("/proc/self/status")
            .readLines()
            .first { it.startsWith("$field:") }
            .filter { it.isDigit() }
            .toLong() / 1024
}
