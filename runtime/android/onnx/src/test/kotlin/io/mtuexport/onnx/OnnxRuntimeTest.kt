package io.mtuexport.onnx

import io.mtuexport.core.Event
import io.mtuexport.core.Exif
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.Memory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.Noise
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Pipeline
import io.mtuexport.core.PipelineOptions
import io.mtuexport.core.Request
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.Target
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import io.mtuexport.core.psnrDb
import io.mtuexport.testkit.TestData
import java.awt.image.BufferedImage
import java.io.File
import java.util.concurrent.CountDownLatch
import javax.imageio.ImageIO
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.Timeout

/** The bundle of the contract's test data, in ONNX Runtime. */
@Timeout(300)
class OnnxRuntimeTest {
    private val data = TestData.open()
    private val bundle = ModelBundle.open(data.bundle)
    private val texts = data.json("request.json") as Map<*, *>
    private val expected = data.tensors("expected.safetensors")

    @TestFactory
    fun `the picture of the test request is Python's`(): List<DynamicTest> =
        Memory.entries.map { memory ->
            dynamicTest("$memory") {
                val finished = generate(PipelineOptions(memory))
                val reference = pixels(ImageIO.read(File(data.folder, texts["picture"] as String)))
                val differing =
                    reference.indices.count { reference[it] != finished.picture.pixels[it] }
                val db = psnrDb(levels(reference), levels(finished.picture.pixels))
                println(
                    "$memory: $differing of ${reference.size} bytes differ from expected.png, $db dB"
                )
                assertTrue(db >= 60) { "$db dB" }
                val tensor = psnrDb(expected.getValue("picture") as Tensor.Floats, finished.tensor)
                println("$memory: the picture before it is rounded: $tensor dB")
                assertTrue(tensor >= 60) { "$tensor dB" }
            }
        }

    @Test
    fun `each part is given what Python gives it, and each latent is Python's`() {
        val inputs = HashMap<String, MutableList<Map<String, Tensor>>>()
        val spying = spy { part, given -> inputs.getOrPut(part) { ArrayList() } += given }
        val latents = ArrayList<Tensor.Floats>()
        Pipeline.open(bundle, spying, options = PipelineOptions(latents = true)).use { pipeline ->
            runBlocking(Dispatchers.Unconfined) {
                pipeline.generate(request()).collect { event ->
                    (event as? Event.Passed)?.latent?.let { latents += it }
                }
            }
        }
        val ids = inputs.getValue("text_encoder").single().getValue("input_ids") as Tensor.Ints
        assertArrayEquals((expected.getValue("ids") as Tensor.Ints).data, ids.data)
        val image = inputs.getValue("vae_encoder").single().getValue("sample") as Tensor.Floats
        assertArrayEquals((expected.getValue("image") as Tensor.Floats).data, image.data)
        val first = inputs.getValue("unet").first().getValue("sample") as Tensor.Floats
        val noise = expected.getValue("noise") as Tensor.Floats
        assertTrue(psnrDb(head(noise, first.data.size / 2), head(first, first.data.size / 2)) > 100)
        val references = expected.filterKeys { it.startsWith("latents/") }
        assertEquals(references.size, latents.size)
        latents.forEachIndexed { pass, latent ->
            val db = psnrDb(references.getValue("latents/$pass") as Tensor.Floats, latent)
            assertTrue(db >= 60) { "latents/$pass: $db dB" }
        }
    }

    @Test
    fun `the goldens of the bundle are reached`() {
        val verdicts = pipeline().use { runBlocking { it.verify() } }
        verdicts.forEach { println("${it.part} ${it.stage}: ${it.psnrDb} dB, floor ${it.floorDb}") }
        assertEquals(
            listOf("text_encoder", "vae_encoder", "unet", "vae_decoder", "pipeline", "pipeline"),
            verdicts.map { it.part },
        )
        assertTrue(verdicts.dropLast(1).all { it.passed == true })
        assertEquals(null, verdicts.last().passed)
        assertTrue(verdicts.last().psnrDb > 40)
    }

    @Test
    fun `a run is interrupted inside a part, and the next picture is right`() {
        val entered = CountDownLatch(1)
        val isArmed = java.util.concurrent.atomic.AtomicBoolean(true)
        val failures = ArrayList<Throwable>()
        // the pipeline's own thread is held until its run was interrupted: that run then ends at
        // once
        val runtime =
            object : PartRuntime {
                override val target = Target.ONNX

                override fun open(part: LoadedPart): PartSession =
                    OnnxRuntime().open(part).let { session ->
                        if (part.name == "unet" && isArmed.getAndSet(false))
                            Repeating(session, entered, failures)
                        else session
                    }
            }
        Pipeline.open(bundle, runtime).use { pipeline ->
            runBlocking(Dispatchers.Default) {
                val collecting = launch { pipeline.generate(request()).collect() }
                entered.await()
                collecting.cancel()
                collecting.join()
                assertTrue(collecting.isCancelled)
                assertTrue("terminate" in failures.single().message.orEmpty()) { "$failures" }
                assertTrue(failures.single() is MtuException.PartFailed)
                val finished = pipeline.generate(request()).last() as Event.Finished
                assertTrue(
                    psnrDb(expected.getValue("picture") as Tensor.Floats, finished.tensor) >= 60
                )
            }
        }
    }

    /**
     * Runs its part again and again, each run as the pipeline's, until one is interrupted inside.
     */
    private class Repeating(
        private val session: PartSession,
        private val entered: CountDownLatch,
        private val failures: MutableList<Throwable>,
    ) : PartSession by session {
        override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
            entered.countDown()
            try {
                while (true) session.run(inputs)
            } catch (error: MtuException) {
                failures += error
                throw error
            }
        }
    }

    @Test
    fun `outputs are copies`() {
        val unet = loaded("unet")
        OnnxRuntime().open(unet).use { session ->
            val first = session.run(inputs(unet, 0.5f)).getValue("out_sample")
            val copy = first.data.copyOf()
            session.run(inputs(unet, -0.25f))
            assertArrayEquals(copy, first.data)
        }
    }

    @Test
    fun `a graph of other names, a damaged and a missing one are refused`() {
        val unet = loaded("unet")
        val renamed =
            LoadedPart(
                unet.name,
                unet.path,
                unet.entry,
                unet.inputs.map { TensorSpec("x_${it.name}", it.shape, it.type) },
                unet.outputs,
                unet.bytes,
                unet.versions,
            )
        val others =
            LoadedPart(
                unet.name,
                unet.path,
                unet.entry,
                unet.inputs,
                listOf(TensorSpec("other", intArrayOf(1), unet.outputs[0].type)),
                unet.bytes,
                unet.versions,
            )
        val missing =
            LoadedPart(
                unet.name,
                unet.path,
                "none.onnx",
                unet.inputs,
                unet.outputs,
                unet.bytes,
                unet.versions,
            )
        val damaged =
            LoadedPart(
                unet.name,
                unet.path,
                "config.json",
                unet.inputs,
                unet.outputs,
                unet.bytes,
                unet.versions,
            )
        val versions = "(made with ONNX Runtime 1.28.0, here is ${OnnxRuntime.version})"
        for ((part, what) in
            listOf(
                renamed to "inputs",
                others to "outputs",
                missing to versions,
                damaged to versions,
            )) {
            val error =
                assertThrows(MtuException.PartFailed::class.java) { OnnxRuntime().open(part) }
            assertEquals(Phase.OPEN, error.phase)
            assertTrue(what in error.message.orEmpty())
        }
    }

    @Test
    fun `an input of another shape fails in its run, and the next run works`() {
        val unet = loaded("unet")
        OnnxRuntime().open(unet).use { session ->
            val wrong =
                inputs(unet, 0f) + ("timestep" to Tensor.Floats(intArrayOf(2), FloatArray(2)))
            val error = assertThrows(MtuException.PartFailed::class.java) { session.run(wrong) }
            assertEquals(Phase.RUN, error.phase)
            assertEquals(1, session.run(inputs(unet, 0f)).size)
        }
    }

    @Test
    fun `each set of options gives the same picture`() {
        val reference = expected.getValue("picture") as Tensor.Floats
        for (options in
            listOf(
                OnnxOptions(threads = 1),
                OnnxOptions(arena = true),
                OnnxOptions(memoryPattern = false),
                OnnxOptions(optimization = Optimization.NONE),
                OnnxOptions(entries = mapOf("session.intra_op.allow_spinning" to "0")),
            )) {
            val picture = generate(PipelineOptions(), OnnxRuntime(options)).tensor
            val db = psnrDb(reference, picture)
            assertTrue(db >= 40) { "$db dB" }
        }
        assertThrows(IllegalArgumentException::class.java) { OnnxOptions(threads = -1) }
    }

    @Test
    fun `200 times opened, run and closed, memory does not grow`() {
        val unet = loaded("unet")
        val runtime = OnnxRuntime()
        fun round() = runtime.open(unet).use { it.run(inputs(unet, 0.5f)) }
        repeat(20) { round() } // pools and caches fill
        val before = residentKiB()
        val threads = threadCount()
        repeat(200) { round() }
        val grown = residentKiB() - before
        println("resident memory after 200 rounds: $before KiB and $grown KiB more")
        assertTrue(grown < 64 * 1024) { "$grown KiB" }
        // The part is small: a session that stays open is seen by its pool of threads.
        assertTrue(threadCount() < threads + 20) { "$threads threads, then ${threadCount()}" }
    }

    private fun threadCount(): Int = File("/proc/self/task").list()!!.size

    private fun residentKiB(): Long {
        System.gc()
        return File("/proc/self/status")
            .readLines()
            .first { it.startsWith("VmRSS:") }
            .filter { it.isDigit() }
            .toLong()
    }

    private fun pipeline(
        options: PipelineOptions = PipelineOptions(),
        runtime: PartRuntime = OnnxRuntime(),
    ) = Pipeline.open(bundle, runtime, options = options)

    private fun generate(
        options: PipelineOptions,
        runtime: PartRuntime = OnnxRuntime(),
    ): Event.Finished =
        pipeline(options, runtime).use {
            runBlocking { it.generate(request()).last() as Event.Finished }
        }

    private fun request(): Request {
        val file = File(data.folder, texts["image"] as String)
        val decoded = ImageIO.read(file)
        val pixels = ByteArray(4 * decoded.width * decoded.height)
        for (i in 0 until decoded.width * decoded.height) {
            val argb = decoded.getRGB(i % decoded.width, i / decoded.width)
            for (channel in 0 until 3) pixels[4 * i + channel] =
                (argb shr (16 - 8 * channel)).toByte()
            pixels[4 * i + 3] = (argb shr 24).toByte()
        }
        val image =
            RgbaImage(decoded.width, decoded.height, pixels, Exif.orientation(file.readBytes()))
        return Request(
            prompt = texts["prompt"] as String,
            pictures = mapOf("image" to image),
            steps = (texts["steps"] as Double).toInt(),
            noise = Noise.Seed((texts["seed"] as Double).toLong()),
        )
    }

    /** What the pipeline hands to the runtime for a part. */
    private fun loaded(name: String): LoadedPart {
        val parts = ArrayList<LoadedPart>()
        val runtime =
            object : PartRuntime {
                override val target = Target.ONNX

                override fun open(part: LoadedPart): PartSession =
                    OnnxRuntime().open(part).also { parts += part }
            }
        pipeline(runtime = runtime).use { runBlocking { it.prewarm() } }
        return parts.first { it.name == name }
    }

    private fun inputs(part: LoadedPart, value: Float): Map<String, Tensor> =
        part.inputs.associate {
            it.name to
                Tensor.Floats(it.shape, FloatArray(Tensor.elements(it.shape).toInt()) { value })
        }

    private fun spy(seen: (part: String, inputs: Map<String, Tensor>) -> Unit) =
        object : PartRuntime {
            override val target = Target.ONNX

            override fun open(part: LoadedPart): PartSession {
                val session = OnnxRuntime().open(part)
                return object : PartSession by session {
                    override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
                        seen(part.name, inputs)
                        return session.run(inputs)
                    }
                }
            }
        }

    private fun head(tensor: Tensor.Floats, count: Int) =
        Tensor.Floats(intArrayOf(count), tensor.data.copyOf(count))

    private fun pixels(image: BufferedImage) =
        ByteArray(3 * image.width * image.height) {
            val argb = image.getRGB(it / 3 % image.width, it / 3 / image.width)
            (argb shr (16 - 8 * (it % 3))).toByte()
        }

    private fun levels(pixels: ByteArray): Tensor.Floats {
        // the contract's 20·log10(255 / rmse): a level of 255 that both have
        val values =
            FloatArray(pixels.size + 1) {
                if (it == pixels.size) 255f else (pixels[it].toInt() and 0xFF).toFloat()
            }
        return Tensor.Floats(intArrayOf(values.size), values)
    }
}
