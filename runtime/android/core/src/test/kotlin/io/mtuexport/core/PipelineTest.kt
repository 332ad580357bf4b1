package io.mtuexport.core

import io.mtuexport.testkit.FakeRuntime
import io.mtuexport.testkit.TestData
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.Timeout

/** What a pipeline loads and lets go, with a runtime that counts. */
@Timeout(120)
class PipelineTest {
    private val bundle = ModelBundle.open(TestData.open().bundle)
    private val parts = listOf("text_encoder", "vae_encoder", "unet", "vae_decoder")
    private val passes = 5
    private val runs = 3 * passes // three branches, a batch of one

    @TestFactory
    fun `what is open during and after a picture is what the mode says`(): List<DynamicTest> =
        memories { memory ->
            val runtime = FakeRuntime()
            pipeline(runtime, memory).use { pipeline ->
                repeat(2) { runBlocking { pipeline.generate(REQUEST).last() } }
                assertEquals(
                    mapOf(Memory.LEAST to 1, Memory.UNET to 2, Memory.ALL to 4)[memory],
                    runtime.mostOpen,
                )
                assertEquals(kept(memory, parts), runtime.openParts.toSet())
                for (part in parts) {
                    val opened = if (part in kept(memory, parts)) 1 else 2
                    assertEquals(opened, runtime.count("open $part"), "$part is opened")
                }
                assertEquals(2 * runs, runtime.count("run unet"))
                assertEquals(2, runtime.count("run text_encoder"))
                runBlocking { pipeline.trim() }
                assertEquals(emptyList<String>(), runtime.openParts)
            }
            assertClean(runtime)
        }

    @TestFactory
    fun `an error of a part is one sealed error, and the mode holds after it`(): List<DynamicTest> =
        Memory.entries.flatMap { memory ->
            parts.flatMap { part ->
                listOf(Phase.OPEN, Phase.RUN).map { phase ->
                    dynamicTest("$memory, $part, $phase") {
                        val runtime = FakeRuntime()
                        runtime.failOn(part, phase) { IllegalArgumentException("on purpose") }
                        pipeline(runtime, memory).use { pipeline ->
                            val error = failure<MtuException.PartFailed>(pipeline)
                            assertEquals(listOf(part, phase), listOf(error.part, error.phase))
                            assertTrue("on purpose" in error.message.orEmpty()) {
                                "${error.message}"
                            }
                            val loaded =
                                parts.takeWhile { it != part } +
                                    listOfNotNull(part.takeIf { phase == Phase.RUN })
                            assertEquals(kept(memory, loaded), runtime.openParts.toSet())
                            runBlocking { pipeline.generate(REQUEST).last() }
                        }
                        assertClean(runtime)
                    }
                }
            }
        }

    @TestFactory
    fun `a full memory is named, and nothing stays`(): List<DynamicTest> = memories { memory ->
        for (phase in listOf(Phase.OPEN, Phase.RUN)) {
            val runtime = FakeRuntime()
            runtime.failOn("unet", phase) { OutOfMemoryError("on purpose") }
            pipeline(runtime, memory).use { pipeline ->
                val error = failure<MtuException.OutOfMemory>(pipeline)
                assertEquals("unet", error.part)
                assertTrue(error.needs > 0)
                assertEquals(emptyList<String>(), runtime.openParts)
            }
            assertClean(runtime)
        }
    }

    @TestFactory
    fun `NaN is named by its pass, from 1, and of the picture by none`(): List<DynamicTest> =
        memories { memory ->
            for (pass in 1..passes) {
                val runtime = FakeRuntime()
                runtime.giveNaN("unet", 3 * pass)
                pipeline(runtime, memory).use { pipeline ->
                    assertEquals(pass, failure<MtuException.NotFinite>(pipeline).pass)
                    assertEquals(kept(memory, parts - "vae_decoder"), runtime.openParts.toSet())
                }
                assertClean(runtime)
            }
            val runtime = FakeRuntime()
            runtime.giveNaN("vae_decoder")
            pipeline(runtime, memory).use { assertNull(failure<MtuException.NotFinite>(it).pass) }
            assertClean(runtime)
        }

    @Test
    fun `an error of this library's own passes unchanged`() {
        val runtime = FakeRuntime()
        val error = MtuException.RuntimeMissing(Target.ONNX, "an artefact", "on purpose")
        runtime.failOn("vae_encoder", Phase.OPEN) { error }
        pipeline(runtime).use { assertSame(error, failure<MtuException.RuntimeMissing>(it)) }
        assertClean(runtime)
    }

    @Test
    fun `a part that cannot be freed is named, and the others are freed`() {
        val runtime = FakeRuntime()
        runtime.failOn("vae_encoder", Phase.CLOSE) { IllegalStateException("on purpose") }
        val pipeline = pipeline(runtime, Memory.ALL)
        runBlocking { pipeline.generate(REQUEST).last() }
        val error = assertThrows(MtuException.PartFailed::class.java) { pipeline.close() }
        assertEquals(listOf("vae_encoder", Phase.CLOSE), listOf(error.part, error.phase))
        pipeline.close()
        assertClean(runtime)
    }

    @Test
    fun `events come in order, the passes with the latent where it is asked for`() {
        for (latents in listOf(false, true)) {
            val events =
                pipeline(FakeRuntime(), latents = latents).use { pipeline ->
                    val events = ArrayList<Event>()
                    // unconfined: the collector runs where the event is sent, and so sees each
                    runBlocking(Dispatchers.Unconfined) {
                        pipeline.generate(REQUEST).onEach { events += it }.collect()
                    }
                    events
                }
            assertEquals(parts, events.filterIsInstance<Event.Loading>().map { it.part })
            val passed = events.filterIsInstance<Event.Passed>()
            assertEquals((1..passes).toList(), passed.map { it.number })
            assertTrue(passed.all { it.of == passes && (it.latent != null) == latents })
            val finished = events.last() as Event.Finished
            assertEquals(listOf(48, 32), listOf(finished.picture.width, finished.picture.height))
            assertEquals(7L, finished.seed)
            assertEquals(parts, finished.timings.load.keys.toList())
            assertEquals(parts, finished.timings.run.keys.toList())
        }
    }

    @Test
    fun `a slow collector slows nothing and gets the last event`() {
        val runtime = FakeRuntime()
        pipeline(runtime).use { pipeline ->
            val events =
                runBlocking(Dispatchers.Default) {
                    pipeline
                        .generate(REQUEST)
                        .onEach {
                            while (runtime.count("close vae_decoder") == 0) Thread.sleep(1)
                            Thread.sleep(100) // so that the last event finds the buffer full
                        }
                        .toList()
                }
            assertTrue(events.size <= 3) { "${events.size} events" }
            assertTrue(events.last() is Event.Finished)
        }
        assertClean(runtime)
    }

    @Test
    fun `the same request is the same picture, another is not`() {
        pipeline(FakeRuntime()).use { pipeline ->
            val pictures =
                listOf(
                        REQUEST,
                        REQUEST,
                        Request("blue", pictures = REQUEST.pictures, noise = Noise.Seed(8)),
                    )
                    .map {
                        runBlocking { pipeline.generate(it).last() as Event.Finished }.tensor.data
                    }
            assertArrayEquals(pictures[0], pictures[1])
            assertFalse(pictures[0].contentEquals(pictures[2]))
        }
    }

    @Test
    fun `one picture is made at a time`() {
        val runtime = FakeRuntime()
        val hold = runtime.hold("unet")
        pipeline(runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val both = List(2) { async { pipeline.generate(REQUEST).last() } }
                hold.awaitEntered()
                assertEquals(1, runtime.count("run text_encoder"))
                hold.release()
                both.forEach { it.await() }
            }
        }
        val order = runtime.log.filter { it.startsWith("run") }.distinctRuns()
        assertEquals((parts + parts).map { "run $it" }, order)
        assertClean(runtime)
    }

    @TestFactory
    fun `warming up loads each part once and keeps what stays`(): List<DynamicTest> =
        memories { memory ->
            val runtime = FakeRuntime()
            pipeline(runtime, memory).use { pipeline ->
                assertEquals(parts, runBlocking { pipeline.prewarm() }.keys.toList())
                assertEquals(parts.map { 1 }, parts.map { runtime.count("open $it") })
                assertEquals(0, runtime.log.count { it.startsWith("run") })
                assertEquals(kept(memory, parts), runtime.openParts.toSet())
            }
            assertClean(runtime)
        }

    @TestFactory
    fun `a runtime that gives other numbers fails the check`(): List<DynamicTest> =
        memories { memory ->
            val runtime = FakeRuntime()
            pipeline(runtime, memory).use { pipeline ->
                val verdicts = runBlocking { pipeline.verify() }
                assertEquals(parts + listOf("pipeline", "pipeline"), verdicts.map { it.part })
                assertEquals(
                    listOf("quantised", "exported", "quantised", "exported", "passes", "loop"),
                    verdicts.map { it.stage },
                )
                assertEquals(listOf(35.0, 50.0, 35.0, 50.0, 20.0, 0.0), verdicts.map { it.floorDb })
                assertTrue(verdicts.take(4).all { it.passed == false })
                assertNull(verdicts.last().passed)
                assertEquals(kept(memory, parts), runtime.openParts.toSet())
                assertEquals(4, runBlocking { pipeline.verify(loop = false) }.size)
                assertEquals(2, runBlocking { pipeline.verify(parts = false) }.size)
            }
            assertClean(runtime)
        }

    @Test
    fun `NaN in the check is a verdict, not an error`() {
        val runtime = FakeRuntime()
        runtime.giveNaN("vae_decoder", 1)
        runtime.giveNaN("unet", 4) // after the part's own cases
        pipeline(runtime).use { pipeline ->
            val verdicts = runBlocking { pipeline.verify() }
            for (verdict in listOf(verdicts[3], verdicts[4])) {
                assertEquals(Double.NEGATIVE_INFINITY, verdict.psnrDb)
                assertEquals(false, verdict.passed)
            }
        }
        assertClean(runtime)
    }

    @Test
    fun `cut loads nothing and gives what no encoder reads`() {
        val runtime = FakeRuntime()
        pipeline(runtime).use { pipeline ->
            assertEquals("", pipeline.cut("a red house"))
            assertTrue(pipeline.cut("word ".repeat(80)).isNotEmpty())
        }
        assertEquals(emptyList<String>(), runtime.log)
    }

    @Test
    fun `an unconfined collector that closes the pipeline does not wait for itself`() {
        val runtime = FakeRuntime()
        val pipeline = pipeline(runtime)
        val collecting =
            CoroutineScope(Dispatchers.Unconfined).async {
                runCatching { pipeline.generate(REQUEST).collect { pipeline.close() } }
            }
        val error = runBlocking { collecting.await() }.exceptionOrNull()
        assertTrue(error is IllegalStateException) { "$error" }
        pipeline.close()
        assertClean(runtime)
    }

    private fun List<String>.distinctRuns() = filterIndexed { i, event ->
        i == 0 || this[i - 1] != event
    }

    private fun memories(test: (Memory) -> Unit) =
        Memory.entries.map { dynamicTest("$it") { test(it) } }

    private fun pipeline(
        runtime: FakeRuntime,
        memory: Memory = Memory.LEAST,
        latents: Boolean = false,
    ) = Pipeline.open(bundle, runtime, options = PipelineOptions(memory, latents))

    /** What stays of the parts that were loaded. */
    private fun kept(memory: Memory, loaded: List<String>) =
        when (memory) {
            Memory.LEAST -> emptySet()
            Memory.UNET -> loaded.filter { it == "unet" }.toSet()
            Memory.ALL -> loaded.toSet()
        }

    private inline fun <reified T : Throwable> failure(pipeline: Pipeline): T =
        assertThrows(T::class.java) { runBlocking { pipeline.generate(REQUEST).collect() } }

    private fun assertClean(runtime: FakeRuntime) {
        assertEquals(emptyList<String>(), runtime.openParts)
        assertEquals(emptyList<String>(), runtime.misuse)
    }

    internal companion object {
        /** A request of the bundle's task. */
        val REQUEST =
            Request(
                prompt = "make it red",
                pictures =
                    mapOf("image" to RgbaImage(7, 5, ByteArray(4 * 7 * 5) { (31 * it).toByte() })),
                noise = Noise.Seed(7),
            )
    }
}
