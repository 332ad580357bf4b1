package io.mtuexport.core

import io.mtuexport.core.TestBundles.items
import io.mtuexport.core.TestBundles.members
import io.mtuexport.testkit.FakeRuntime
import io.mtuexport.testkit.TestData
import java.io.File
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** Every error is an [MtuException] of one line, whatever a bundle or a runtime does. */
class ErrorsTest {
    @Test
    fun `shapes that no array holds are out of memory`(@TempDir folder: File) {
        for (shape in
            listOf(listOf(1, 65_536, 65_536), listOf(1) + List(7) { Int.MAX_VALUE })) {
            val copy = TestBundles.copy(folder.resolve("${shape.size}"))
            check(copy.resolve(GOLDENS).delete())
            TestBundles.change(copy) { manifest ->
                manifest["files"].items().removeIf { it.members()["path"] == GOLDENS }
                val parts = manifest["parts"].items().map { it.members() }
                val inputs = parts.single { it["name"] == "unet" }["inputs"].items()
                val timestep = inputs.map { it.members() }.single { it["name"] == "timestep" }
                timestep["shape"] = shape.map { it.toDouble() }
            }
            val runtime = SmallRuntime()
            Pipeline.open(ModelBundle.open(copy), runtime).use { pipeline ->
                val error = failure<MtuException.OutOfMemory>(pipeline)
                assertEquals("task edit", error.part)
            }
            assertEquals(emptyList<String>(), runtime.open)
        }
        assertEquals(0, countOf(intArrayOf(Int.MAX_VALUE, Int.MAX_VALUE, 0)))
        assertEquals(Int.MAX_VALUE, countOf(intArrayOf(Int.MAX_VALUE)))
    }

    @Test
    fun `a method that is missing from a runtime is a part that failed`() {
        val runtime = FakeRuntime()
        runtime.failOn("unet", Phase.RUN) { UnsatisfiedLinkError("run") }
        Pipeline.open(ModelBundle.open(TestData.open().bundle), runtime).use { pipeline ->
            val error = failure<MtuException.PartFailed>(pipeline)
            assertEquals(listOf("unet", Phase.RUN), listOf(error.part, error.phase))
            assertEquals("unet cannot be run: UnsatisfiedLinkError: run", error.message)
        }
        assertEquals(emptyList<String>(), runtime.openParts)
    }

    @Test
    fun `messages of runtimes are one line`() {
        val error = MtuException.PartFailed("unet", Phase.RUN, "one\ntwo\u001B[2J\u2028three\r\n")
        assertEquals("unet cannot be run: one two [2J three", error.message)
    }

    private inline fun <reified T : Throwable> failure(pipeline: Pipeline): T =
        assertThrows(T::class.java) {
            runBlocking { pipeline.generate(PipelineTest.REQUEST).collect() }
        }

    /** Gives zeros, and looks at no input. */
    private class SmallRuntime : PartRuntime {
        val open = ArrayList<String>()
        override val target = Target.ONNX

        override fun open(part: LoadedPart): PartSession {
            open += part.name
            return object : PartSession {
                override fun run(inputs: Map<String, Tensor>) =
                    part.outputs.associate { it.name to filled(it.shape, 0f) }

                override fun close() {
                    open -= part.name
                }
            }
        }
    }
}
