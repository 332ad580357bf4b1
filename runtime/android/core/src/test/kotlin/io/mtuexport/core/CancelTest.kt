package io.mtuexport.core

import io.mtuexport.testkit.FakeRuntime
import io.mtuexport.testkit.TestData
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeoutOrNull
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.Timeout

/** How a picture ends early, with runtimes that can interrupt a part and that cannot. */
@Timeout(120)
class CancelTest {
    private val bundle = ModelBundle.open(TestData.open().bundle)
    private val request = PipelineTest.REQUEST

    @TestFactory
    fun `a cancellation at any pass and part ends the picture when the part has ended`():
        List<DynamicTest> {
        val places =
            (1..5).map { "unet" to 3 * it - 1 } +
                listOf("text_encoder" to 1, "vae_encoder" to 1, "vae_decoder" to 1)
        return Memory.entries.flatMap { memory ->
            places.flatMap { (part, number) ->
                listOf(true, false).map { obeys ->
                    dynamicTest(
                        "$memory, run $number of $part, ${if (obeys) "interrupted" else "to its end"}"
                    ) {
                        cancelInside(memory, part, number, obeys)
                    }
                }
            }
        }
    }

    private fun cancelInside(memory: Memory, part: String, number: Int, obeys: Boolean) {
        val runtime = FakeRuntime()
        val hold = runtime.hold(part, number, obeys)
        Pipeline.open(bundle, runtime, options = PipelineOptions(memory)).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val failures = ArrayList<Throwable>()
                val collecting = launch {
                    try {
                        pipeline.generate(request).collect()
                    } catch (error: Throwable) {
                        failures += error
                        throw error
                    }
                }
                hold.awaitEntered()
                collecting.cancel()
                hold.awaitInterrupted()
                if (!obeys) {
                    assertFalse(collecting.isCompleted) // the part still runs
                    hold.release()
                }
                collecting.join()
                assertTrue(failures.single() is CancellationException) { "$failures" }
                assertEquals(number, runtime.count("run $part")) // no run after it
                assertStays(runtime, memory)
                assertTrue(pipeline.generate(request).last() is Event.Finished)
            }
        }
        assertClean(runtime)
    }

    @TestFactory
    fun `a collector that ends after any number of passes ends the picture`(): List<DynamicTest> =
        (1..5).map { pass ->
            dynamicTest("pass $pass") {
                val runtime = FakeRuntime()
                // the first part of the next pass waits until the collector has left
                val hold =
                    if (pass < 5) runtime.hold("unet", 3 * pass + 1)
                    else runtime.hold("vae_decoder")
                Pipeline.open(bundle, runtime).use { pipeline ->
                    var reached = 0
                    runBlocking(Dispatchers.Unconfined) {
                        launch {
                                pipeline
                                    .generate(request)
                                    .onEach { if (it is Event.Passed) reached = it.number }
                                    .collect {
                                        if (reached == pass) throw CancellationException("enough")
                                    }
                            }
                            .join()
                    }
                    assertEquals(pass, reached)
                    assertTrue(runtime.count("run unet") in 3 * pass..3 * pass + 1)
                    assertEquals(emptyList<String>(), runtime.openParts)
                }
                hold.release()
                assertClean(runtime)
            }
        }

    @Test
    fun `take and a timeout end it, and are not wrapped`() {
        val runtime = FakeRuntime()
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking {
                assertEquals(1, pipeline.generate(request).take(1).toList().size)
                assertEquals(emptyList<String>(), runtime.openParts)
                val hold = runtime.hold("unet", runtime.count("run unet") + 5)
                assertNull(withTimeoutOrNull(200) { pipeline.generate(request).last() })
                assertEquals(emptyList<String>(), runtime.openParts)
                hold.release()
            }
        }
        assertClean(runtime)
    }

    @Test
    fun `an interruption that comes too early is repeated`() {
        val runtime = FakeRuntime()
        val hold = runtime.hold("unet", ignored = 3)
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val collecting = launch { pipeline.generate(request).collect() }
                hold.awaitEntered()
                collecting.cancelAndJoin()
            }
            assertTrue(hold.isInterrupted)
            val second = runtime.hold("unet", runtime.count("run unet") + 1, ignored = 3)
            val collecting =
                CoroutineScope(Dispatchers.Default).async {
                    runCatching { pipeline.generate(request).collect() }
                }
            second.awaitEntered()
            pipeline.close()
            assertTrue(second.isInterrupted)
            assertTrue(
                runBlocking { collecting.await() }.exceptionOrNull() is IllegalStateException
            )
        }
        assertClean(runtime)
    }

    @Test
    fun `a collector that is slow and cancelled leaves nothing`() {
        val runtime = FakeRuntime()
        val hold = runtime.hold("unet", 7)
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val collecting = launch {
                    pipeline.generate(request).collect { hold.awaitInterrupted() }
                }
                hold.awaitEntered()
                collecting.cancel()
                collecting.join()
            }
            assertEquals(emptyList<String>(), runtime.openParts)
        }
        assertClean(runtime)
    }

    @Test
    fun `an error of the collector ends it and passes unchanged`() {
        val runtime = FakeRuntime()
        Pipeline.open(bundle, runtime).use { pipeline ->
            val error =
                assertThrows(UnsupportedOperationException::class.java) {
                    runBlocking {
                        pipeline.generate(request).collect {
                            throw UnsupportedOperationException("mine")
                        }
                    }
                }
            assertEquals("mine", error.message)
            assertEquals(emptyList<String>(), runtime.openParts)
        }
        assertClean(runtime)
    }

    @Test
    fun `who waits for a turn is cancelled at once`() {
        val runtime = FakeRuntime()
        val hold = runtime.hold("unet", obeys = false)
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val first = async { pipeline.generate(request).last() }
                hold.awaitEntered()
                val second =
                    launch(start = CoroutineStart.UNDISPATCHED) {
                        pipeline.generate(request).collect()
                    }
                second.cancelAndJoin()
                assertFalse(hold.isInterrupted)
                hold.release()
                assertTrue(first.await() is Event.Finished)
            }
        }
        assertClean(runtime)
    }

    @TestFactory
    fun `close ends what runs, waits for the part, and frees all`(): List<DynamicTest> =
        Memory.entries.map { memory ->
            dynamicTest("$memory") {
                val runtime = FakeRuntime()
                val hold = runtime.hold("unet", 4, obeys = false)
                val pipeline = Pipeline.open(bundle, runtime, options = PipelineOptions(memory))
                runBlocking(Dispatchers.Default) {
                    val running = async { runCatching { pipeline.generate(request).collect() } }
                    hold.awaitEntered()
                    val waiting =
                        async(start = CoroutineStart.UNDISPATCHED) {
                            runCatching { pipeline.prewarm() }
                        }
                    val closers = List(2) { Thread(pipeline::close).apply { start() } }
                    hold.awaitInterrupted()
                    assertTrue(closers.all { it.isAlive })
                    assertTrue("unet" in runtime.openParts)
                    hold.release()
                    closers.forEach { it.join() }
                    assertEquals(emptyList<String>(), runtime.openParts)
                    for (result in listOf(running, waiting)) {
                        val error = result.await().exceptionOrNull()
                        assertTrue(
                            error is IllegalStateException && error !is CancellationException
                        ) {
                            "$error"
                        }
                    }
                }
                pipeline.close()
                assertThrows(IllegalStateException::class.java) {
                    runBlocking { pipeline.generate(request).collect() }
                }
                assertThrows(IllegalStateException::class.java) {
                    runBlocking { pipeline.verify() }
                }
                assertThrows(IllegalStateException::class.java) { runBlocking { pipeline.trim() } }
                assertClean(runtime)
            }
        }

    @Test
    fun `a check and a warming up are cancelled as a picture is`() {
        val runtime = FakeRuntime()
        val hold = runtime.hold("unet", 2)
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val checking = launch { pipeline.verify() }
                hold.awaitEntered()
                checking.cancelAndJoin()
                assertTrue(hold.isInterrupted)
                assertEquals(emptyList<String>(), runtime.openParts)
            }
        }
        assertClean(runtime)
    }

    private fun assertStays(runtime: FakeRuntime, memory: Memory) {
        val open = runtime.openParts.toSet()
        when (memory) {
            Memory.LEAST -> assertEquals(emptySet<String>(), open)
            Memory.UNET -> assertTrue(open.all { it == "unet" }) { "$open" }
            Memory.ALL ->
                assertEquals(
                    runtime.log.filter { it.startsWith("open") }.map { it.substring(5) }.toSet(),
                    open,
                )
        }
    }

    private fun assertClean(runtime: FakeRuntime) {
        assertEquals(emptyList<String>(), runtime.openParts)
        assertEquals(emptyList<String>(), runtime.misuse)
    }
}
