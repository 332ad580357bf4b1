package io.mtuexport.android

import io.mtuexport.core.Memory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Phase
import io.mtuexport.core.Pipeline
import io.mtuexport.core.PipelineOptions
import io.mtuexport.testkit.FakeRuntime
import io.mtuexport.testkit.TestData
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.Timeout

/** What the system's call for memory does to a pipeline, at any time. */
@Timeout(120)
class DeviceMemoryTest {
    private val bundle = ModelBundle.open(TestData.open().bundle)
    private val runtime = FakeRuntime()

    private fun pipeline() =
        Pipeline.open(bundle, runtime, options = PipelineOptions(Memory.ALL))

    @Test
    fun `what is loaded is let go of`() {
        pipeline().use { pipeline ->
            runBlocking { pipeline.prewarm() }
            assertEquals(4, runtime.openParts.size)
            runBlocking { letGo(pipeline) }
            assertEquals(emptyList<String>(), runtime.openParts)
        }
    }

    @Test
    fun `a pipeline that is closed meanwhile is no error`() {
        val hold = runtime.hold("unet", obeys = false)
        val pipeline = pipeline()
        runBlocking(Dispatchers.Default) {
            val checking = async { runCatching { pipeline.verify() } }
            hold.awaitEntered()
            val trimming = async { letGo(pipeline) } // waits for its turn
            val closing = launch { pipeline.close() }
            hold.awaitInterrupted()
            hold.release()
            trimming.await()
            closing.join()
            assertTrue(checking.await().isFailure)
        }
        runBlocking { letGo(pipeline) }
        assertEquals(emptyList<String>(), runtime.openParts)
    }

    @Test
    fun `a part that cannot be freed is no error`() {
        runtime.failOn("vae_encoder", Phase.CLOSE) { IllegalArgumentException("on purpose") }
        pipeline().use { pipeline ->
            runBlocking { pipeline.prewarm() }
            runBlocking { letGo(pipeline) }
            assertEquals(emptyList<String>(), runtime.openParts)
        }
    }

    @Test
    fun `it is cancelled with its scope`() {
        val hold = runtime.hold("unet", obeys = false)
        pipeline().use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val checking = async { pipeline.verify() }
                hold.awaitEntered()
                val trimming = launch { letGo(pipeline) }
                trimming.cancelAndJoin()
                assertTrue(trimming.isCancelled)
                hold.release()
                checking.await()
            }
        }
    }
}
