package io.mtuexport.executorch

import io.mtuexport.core.ElementType
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.Memory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Pipeline
import io.mtuexport.core.PipelineOptions
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import java.io.File
import java.nio.file.Path
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/**
 * The embedded model's bundle of four tasks, which `-Dmtu.pte=FOLDER` names, through the library
 * that `-Dmtu.executorch=FOLDER` names. Without them nothing runs here.
 */
class BundleTest {
    private val place = System.getProperty("mtu.pte").orEmpty()
    private val folder = File(place)

    // A line a verdict, for who compares them with the manifest's.
    private val report = File("target/verdicts.txt")

    @BeforeEach
    fun needed() {
        assumeTrue(place.isNotEmpty(), "no bundle is named: -Dmtu.pte")
        assumeTrue(
            !System.getProperty("mtu.executorch").isNullOrEmpty(),
            "no library is named: -Dmtu.executorch",
        )
    }

    private fun verdicts(task: String) = runBlocking {
        Pipeline.open(ModelBundle.open(folder), ExecuTorchRuntime(), task).use { it.verify() }
    }

    @Test
    fun `goldens of every task are reached`() {
        report.delete()
        val tasks = ModelBundle.open(folder).tasks.map { it.name }
        assertTrue(tasks.size >= 2, "$tasks")
        for (task in tasks) {
            val verdicts = verdicts(task)
            assertTrue(verdicts.isNotEmpty(), task)
            for (verdict in verdicts) {
                report.appendText(
                    "$task ${verdict.part} ${verdict.stage} ${verdict.psnrDb} ${verdict.floorDb}\n"
                )
                assertTrue(
                    verdict.passed != false,
                    "$task ${verdict.part} ${verdict.stage} ${verdict.psnrDb}",
                )
            }
        }
    }

    /** What a pipeline asks its runtime for, kept. */
    private class Recorder : PartRuntime {
        val parts = ArrayList<LoadedPart>()
        private val runtime = ExecuTorchRuntime()
        override val target
            get() = runtime.target

        override fun open(part: LoadedPart): PartSession = runtime.open(part.also(parts::add))
    }

    /** The denoiser of the bundle's first task, with another method or another file. */
    private fun denoiser(entry: String? = null, change: (File) -> File = { it }): LoadedPart {
        val recorder = Recorder()
        val bundle = ModelBundle.open(folder)
        runBlocking {
            Pipeline.open(bundle, recorder, bundle.tasks.first().name).use { it.prewarm() }
        }
        val part = recorder.parts.first { it.name == "unet" }
        return LoadedPart(
            part.name,
            change(part.path),
            entry ?: part.entry,
            part.inputs,
            part.outputs,
            part.bytes,
            part.versions,
        )
    }

    private fun inputs(part: LoadedPart, value: Float): Map<String, Tensor> =
        part.inputs.associate { spec ->
            val count = Tensor.elements(spec.shape).toInt()
            spec.name to
                when (spec.type) {
                    ElementType.FLOAT32 -> Tensor.Floats(spec.shape, FloatArray(count) { value })
                    ElementType.INT32 -> Tensor.Ints(spec.shape, IntArray(count) { 1 })
                }
        }

    @Test
    fun `outputs are copies`() {
        val part = denoiser()
        ExecuTorchRuntime().open(part).use { session ->
            val first = session.run(inputs(part, 0.5f)).values.single()
            val kept = first.data.clone()
            val second = session.run(inputs(part, -0.5f)).values.single()
            assertArrayEquals(kept, first.data)
            assertFalse(kept.contentEquals(second.data))
        }
    }

    @Test
    fun `wrong inputs are refused, and the session goes on`() {
        val part = denoiser()
        ExecuTorchRuntime().open(part).use { session ->
            val good = inputs(part, 0.5f)
            val spec: TensorSpec = part.inputs.first()
            val count = Tensor.elements(spec.shape).toInt()
            for (bad in
                listOf(
                    good - spec.name,
                    good + (spec.name to Tensor.Floats(intArrayOf(count), FloatArray(count))),
                    good + (spec.name to Tensor.Ints(spec.shape, IntArray(count))),
                )) {
                val error = assertThrows(IllegalArgumentException::class.java) { session.run(bad) }
                assertTrue(spec.name in error.message!!, error.message)
            }
            assertEquals(part.outputs.map { it.name }.toSet(), session.run(good).keys)
        }
    }

    @Test
    fun `a method that is not there is named with those that are`() {
        val error =
            assertThrows(MtuException.PartFailed::class.java) {
                ExecuTorchRuntime().open(denoiser("nothing"))
            }
        assertEquals(Phase.OPEN, error.phase)
        assertTrue(
            "'nothing'" in error.message!! && denoiser().entry in error.message!!,
            error.message,
        )
    }

    @Test
    fun `files that are no programs are refused`(@TempDir scratch: Path) {
        val whole = denoiser().path.readBytes()
        val copies =
            listOf(
                ByteArray(0),
                ByteArray(64),
                whole.copyOf(8),
                whole.copyOf(4096),
                whole.copyOf(whole.size / 2),
            )
        for ((index, bytes) in copies.withIndex()) {
            val part = denoiser { File(scratch.toFile(), "$index.pte").apply { writeBytes(bytes) } }
            assertThrows(MtuException.PartFailed::class.java) { ExecuTorchRuntime().open(part) }
        }
    }

    @Test
    fun `a file of a newer version that is not read names both`(@TempDir scratch: Path) {
        val part = denoiser {
            File(scratch.toFile(), "new.pte").apply { writeBytes(ByteArray(64)) }
        }
        val newer =
            LoadedPart(
                part.name,
                part.path,
                part.entry,
                part.inputs,
                part.outputs,
                part.bytes,
                mapOf("executorch" to "9.1.0"),
            )
        val error =
            assertThrows(MtuException.RuntimeMissing::class.java) {
                ExecuTorchRuntime().open(newer)
            }
        assertTrue(
            "9.1.0" in error.message!! && ExecuTorchRuntime.COMPILED_AGAINST in error.message!!,
            error.message,
        )
    }

    @Test
    fun `memory is given back, 200 times`() {
        val part = denoiser()
        val inputs = inputs(part, 0.5f)
        fun use() = ExecuTorchRuntime().open(part).use { it.run(inputs) }
        repeat(20) { use() }
        val before = anonymous()
        repeat(200) { use() }
        val growth = anonymous() - before
        assertTrue(growth < 100_000_000, "$growth bytes; the file has ${part.path.length()}")
    }

    /** Bytes of this process that are no file's, heap and native memory together. */
    private fun anonymous(): Long {
        System.gc()
        val line = File("/proc/self/status").readLines().first { it.startsWith("RssAnon:") }
        return line.filter(Char::isDigit).toLong() * 1024
    }

    @Test
    fun `one thread and memory of every kind`() {
        val bundle = ModelBundle.open(folder)
        for (memory in Memory.values()) {
            val options = PipelineOptions(memory = memory)
            runBlocking {
                Pipeline.open(bundle, ExecuTorchRuntime(1), bundle.tasks.first().name, options)
                    .use { pipeline ->
                        assertTrue(
                            pipeline.verify(parts = false).all { it.passed != false },
                            "$memory",
                        )
                    }
            }
        }
    }
}
