package io.mtuexport.core.bench

import io.mtuexport.core.Json
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Safetensors
import io.mtuexport.core.Target
import io.mtuexport.core.Tensor
import java.io.File
import java.nio.file.Path
import java.util.concurrent.CountDownLatch
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class JobRunnerTest {
    @TempDir lateinit var place: Path
    private val folder: File
        get() = place.toFile()

    private val events = ArrayList<Map<*, *>>()

    /** Its parts give their first input, doubled. */
    private open class Doubling : PartRuntime {
        var opened = 0
        var closed = 0
        override val target = Target.ONNX

        override fun open(part: LoadedPart): PartSession {
            opened++
            return object : PartSession {
                override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> =
                    result(inputs)

                override fun close() {
                    closed++
                }
            }
        }

        open fun result(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
            val input = inputs.values.first() as Tensor.Floats
            return mapOf(
                "y" to
                    Tensor.Floats(input.shape, FloatArray(input.data.size) { 2 * input.data[it] })
            )
        }
    }

    private fun spec(name: String) =
        mapOf("name" to name, "shape" to listOf(1, 2), "dtype" to "float32")

    private val part =
        mapOf(
            "path" to "unet",
            "entry" to "model.onnx",
            "inputs" to listOf(spec("x")),
            "outputs" to listOf(spec("y")),
        )

    // y = unet(x); z = 3 y - x, then half of it; both x and z on axis 0, and the second of them.
    private val job: Map<String, Any?> =
        linkedMapOf(
            "format" to 1,
            "engine" to "onnx",
            "parts" to mapOf("unet" to part),
            "tensors" to "t.safetensors",
            "program" to
                listOf(
                    mapOf(
                        "op" to "call",
                        "part" to "unet",
                        "inputs" to mapOf("x" to "x"),
                        "outputs" to mapOf("y" to "y"),
                    ),
                    mapOf(
                        "op" to "sum",
                        "terms" to listOf(listOf(3, "y"), listOf(-1.0, "x")),
                        "out" to "z",
                    ),
                    mapOf("op" to "divide", "by" to 2, "in" to "z", "out" to "z"),
                    mapOf("op" to "scale", "by" to 1.0, "in" to "z", "out" to "z"),
                    mapOf("op" to "concat", "axis" to 0, "in" to listOf("x", "z"), "out" to "both"),
                    mapOf("op" to "slice", "begin" to 1, "in" to "both", "out" to "last"),
                ),
            "expected" to mapOf("last" to "last of it", "y" to "y of it"),
            "outputs" to "kept.safetensors",
            "keep" to listOf("both"),
            "warmup" to 1,
            "samples" to 3,
            "load_again" to true,
        )

    private fun run(
        job: Map<String, Any?> = this.job,
        runtime: PartRuntime = Doubling(),
        options: (Map<String, String>) -> Unit = {},
    ): Pair<Int, Map<*, *>> {
        val file = File(folder, "job.json").apply { writeText(Json.write(job)) }
        if (!File(folder, "t.safetensors").exists()) {
            val tensors =
                mapOf(
                    "x" to floats(1f, 2f),
                    "last of it" to floats(2.5f, 5f),
                    "y of it" to floats(2f, 4.004f),
                    "ids" to Tensor.Ints(intArrayOf(1, 2), intArrayOf(1, 2)),
                )
            writeTensors(File(folder, "t.safetensors"), tensors)
        }
        val engines =
            mapOf(
                "onnx" to
                    { _: Int, given: Map<String, String> ->
                        options(given)
                        JobEngine("onnxruntime", "1.28.0", runtime)
                    }
            )
        val result = File(folder, "result.json")
        val code =
            JobRunner(engines, RunnerName("test", "1", "Kotlin"))
                .run(file, result, { events += parsed(it.toByteArray()) })
        return Pair(code, parsed(result.readBytes()))
    }

    private fun floats(vararg numbers: Float) = Tensor.Floats(intArrayOf(1, numbers.size), numbers)

    private fun parsed(bytes: ByteArray) = Json.parse(bytes, "result") as Map<*, *>

    @Test
    fun `a job is measured`() {
        val runtime = Doubling()
        val (code, result) = run(runtime = runtime)
        assertEquals("measured", result["status"], "$result")
        assertEquals(0, code)
        assertEquals(3, (result["samples_s"] as List<*>).size)
        assertNotNull(result["first_s"])
        assertEquals(3.0, ((result["calls"] as Map<*, *>)["unet"] as Map<*, *>)["count"])
        for (key in listOf("load_s", "load_again_s")) assertEquals(
            setOf("unet"),
            (result[key] as Map<*, *>).keys,
        )
        val decibels = result["psnr_db"] as Map<*, *>
        assertEquals(999.0, decibels["last"])
        assertEquals(63.01, decibels["y"] as Double, 0.01) // 20 log10(4.004 / sqrt(0.004^2 / 2))
        assertEquals(2, runtime.opened)
        assertEquals(2, runtime.closed)
        val kept = Safetensors.open(File(folder, "kept.safetensors")).floats("both")
        assertArrayEquals(intArrayOf(2, 2), kept.shape)
        assertArrayEquals(floatArrayOf(1f, 2f, 2.5f, 5f), kept.data)
        assertEquals(
            listOf(
                "job",
                "engine",
                "loaded",
                "sample",
                "sample",
                "sample",
                "sample",
                "loaded again",
            ),
            events.map { it["event"] },
        )
        assertEquals(listOf(true, false, false, false), events.mapNotNull { it["warmup"] })
        val memory = result["memory"] as Map<*, *>
        assertEquals(setOf("start", "loaded", "run", "peak_total"), memory.keys)
        assertTrue(((result["machine"] as Map<*, *>)["page_size"] as Double) >= 4096)
    }

    private fun refused(change: Map<String, Any?>, vararg words: String) {
        var asked = 0
        val (code, result) = run(job + change, options = { asked++ })
        val reason = result["reason"] as String
        assertEquals(BAD_JOB, code, reason)
        assertEquals("failed", result["status"])
        for (word in words) assertTrue(word in reason, reason)
        assertEquals(0, asked)
    }

    @Test
    fun `what does not fit together is refused before an engine is asked`() {
        val program = job["program"] as List<*>
        refused(mapOf("format" to 2), "format")
        refused(mapOf("engine" to "coreml"), "onnx or executorch")
        refused(mapOf("colour" to 1), "'colour' is unknown")
        refused(mapOf("samples" to 0), "samples", "1 to 100000")
        refused(mapOf("samples" to 1.5), "samples")
        refused(mapOf("cpus" to "f"), "cpus", "all")
        refused(mapOf("library" to "lib.so"), "library")
        refused(mapOf("options" to mapOf("arena" to "2")), "options.arena", "0 or 1")
        refused(mapOf("deadline_s" to 0), "deadline_s")
        refused(mapOf("tensors" to "../t.safetensors"), "tensors", "relative")
        refused(mapOf("parts" to mapOf("unet" to part + ("entry" to "a/b"))), "parts.unet.entry")
        refused(mapOf("parts" to mapOf("unet" to part + ("path" to "/unet"))), "parts.unet.path")
        refused(
            mapOf("program" to program.drop(1)),
            "program[0]",
            "nothing has written register 'y'",
        )
        refused(mapOf("program" to listOf(mapOf("op" to "jump"))), "program[0]", "jump")
        refused(mapOf("expected" to mapOf("both" to "y of it")), "expected.both", "[2, 2]")
        refused(mapOf("expected" to mapOf("ids" to "ids")), "expected.ids")
        refused(mapOf("keep" to listOf("nothing")), "'nothing'")
        refused(mapOf("outputs" to null), "outputs")
        val sum = mapOf("op" to "sum", "terms" to listOf(listOf(1, "ids")), "out" to "s")
        refused(mapOf("program" to listOf(program[0], sum)), "program[1]", "not float32")
        val divide = mapOf("op" to "divide", "by" to 0, "in" to "x", "out" to "s")
        refused(mapOf("program" to listOf(program[0], divide)), "other than 0")
        val slice = mapOf("op" to "slice", "begin" to 1, "in" to "x", "out" to "s")
        refused(mapOf("program" to listOf(program[0], slice)), "begin")
        val concat = mapOf("op" to "concat", "axis" to 0, "in" to listOf("x", "ids"), "out" to "s")
        refused(mapOf("program" to listOf(program[0], concat)), "differ in type")
    }

    @Test
    fun `no job, and tensors that are none`() {
        val result = File(folder, "result.json")
        val runner = JobRunner(emptyMap(), RunnerName("test", "1", "Kotlin"))
        assertEquals(BAD_JOB, runner.run(File(folder, "nothing.json"), result))
        File(folder, "bad.json").writeText("{\"format\": 1")
        assertEquals(BAD_JOB, runner.run(File(folder, "bad.json"), result))
        File(folder, "t.safetensors").writeText("short")
        assertEquals(BAD_FILE, run().first)
    }

    @Test
    fun `each failure has its code and keeps what was measured`() {
        val missing = { throw MtuException.RuntimeMissing(Target.ONNX, "onnxruntime", "not there") }
        assertEquals(NO_ENGINE, run(options = { missing() }).first)
        assertEquals(BAD_JOB, run(options = { throw IllegalArgumentException("option") }).first)
        assertEquals(NO_ENGINE, run(job + ("engine" to "executorch")).first)
        val closed =
            object : Doubling() {
                override fun open(part: LoadedPart) =
                    throw MtuException.PartFailed(part.name, Phase.OPEN, "bad file")
            }
        assertEquals(BAD_FILE, run(runtime = closed).first)
        val failing =
            object : Doubling() {
                private var calls = 0

                override fun result(inputs: Map<String, Tensor>) =
                    if (++calls == 3) throw IllegalStateException("broken\nin two")
                    else super.result(inputs)
            }
        val (code, result) = run(runtime = failing)
        assertEquals(PART_FAILED, code)
        assertEquals("broken in two", result["reason"])
        assertEquals(1, (result["samples_s"] as List<*>).size)
        assertEquals(failing.opened, failing.closed)
        val shapeless =
            object : Doubling() {
                override fun result(inputs: Map<String, Tensor>) = mapOf("y" to floats(1f))
            }
        assertEquals(BAD_FILE, run(runtime = shapeless).first)
        val infinite =
            object : Doubling() {
                override fun result(inputs: Map<String, Tensor>) =
                    mapOf("y" to floats(Float.NaN, 0f))
            }
        assertEquals(PART_FAILED, run(runtime = infinite).first)
        val full =
            object : Doubling() {
                override fun result(inputs: Map<String, Tensor>): Nothing =
                    throw OutOfMemoryError("heap")
            }
        assertEquals("out of memory", run(runtime = full).second["reason"])
    }

    @Test
    fun `a deadline ends the wait, and a late answer changes nothing`() {
        val gate = CountDownLatch(1)
        val slow =
            object : Doubling() {
                override fun result(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
                    gate.await()
                    return super.result(inputs)
                }
            }
        val (code, result) = run(job + ("deadline_s" to 0.05), slow)
        gate.countDown()
        assertEquals(PART_FAILED, code)
        assertEquals("no result in 0.05 s", result["reason"])
        assertEquals("failed", events.last()["event"])
        assertFalse(File(folder, "result.json.part").exists())
    }
}
