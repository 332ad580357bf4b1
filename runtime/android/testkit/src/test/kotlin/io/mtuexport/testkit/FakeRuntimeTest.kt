package io.mtuexport.testkit

import io.mtuexport.core.Event
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.Memory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.Phase
import io.mtuexport.core.Pipeline
import io.mtuexport.core.PipelineOptions
import io.mtuexport.core.Request
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.Tensor
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.Timeout

/** The tests of an app could be like these: they see what is public alone. */
@Timeout(60)
class FakeRuntimeTest {
    private val runtime = FakeRuntime()
    private val bundle = ModelBundle.open(TestData.open().bundle)
    private val pipeline = Pipeline.open(bundle, runtime, options = PipelineOptions(Memory.UNET))
    private val request = Request("red", pictures = mapOf("image" to RgbaImage(1, 1, ByteArray(4))))

    @Test
    fun `what happens is counted`() {
        val finished =
            pipeline.use { runBlocking { it.generate(request).last() as Event.Finished } }
        assertEquals(3 * bundle.height * bundle.width, finished.picture.pixels.size)
        assertEquals(2, runtime.mostOpen)
        assertEquals(
            listOf("open text_encoder", "run text_encoder", "close text_encoder"),
            runtime.log.take(3),
        )
        assertEquals("close unet", runtime.log.last())
        assertEquals(emptyList<String>(), runtime.openParts + runtime.misuse)
    }

    @Test
    fun `what is ordered happens, at its time`() {
        runtime.failOn("vae_decoder", Phase.RUN, 2) { IllegalStateException("on purpose") }
        runtime.giveNaN("unet", 1 + 15 + 15)
        pipeline.use {
            runBlocking { it.generate(request).last() }
            assertThrows(MtuException.PartFailed::class.java) {
                runBlocking { it.generate(request).collect() }
            }
            assertThrows(MtuException.NotFinite::class.java) {
                runBlocking { it.generate(request).collect() }
            }
        }
        assertEquals(15 + 15 + 3, runtime.count("run unet")) // a pass is over when its branches are
    }

    @Test
    fun `a run that is held is released or interrupted`() {
        val holds = listOf(runtime.hold("unet", 1, obeys = false), runtime.hold("unet", 2))
        pipeline.use {
            runBlocking(Dispatchers.Default) {
                val collecting = launch { it.generate(request).collect() }
                holds[0].awaitEntered()
                holds[0].release()
                holds[1].awaitEntered()
                collecting.cancel()
                holds[1].awaitInterrupted()
                collecting.join()
            }
        }
        assertTrue(!holds[0].isInterrupted && holds[1].isInterrupted)
    }

    @Test
    fun `misuse is noted`() {
        var handed: LoadedPart? = null
        val recording =
            object : PartRuntime by runtime {
                override fun open(part: LoadedPart) = runtime.open(part).also { handed = part }
            }
        Pipeline.open(bundle, recording).use { runBlocking { it.prewarm() } }
        val session = runtime.open(checkNotNull(handed))
        session.close()
        session.close()
        val inputs =
            checkNotNull(handed).inputs.associate {
                it.name to Tensor.Floats(it.shape, FloatArray(Tensor.elements(it.shape).toInt()))
            }
        session.run(inputs)
        assertEquals(
            listOf("vae_decoder is closed twice", "vae_decoder is run after it was closed"),
            runtime.misuse,
        )
    }
}
