package io.mtuexport.core

import io.mtuexport.testkit.FakeRuntime
import io.mtuexport.testkit.TestData
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

class RequestTest {
    private val bundle = ModelBundle.open(TestData.open().bundle)
    private val image = RgbaImage(2, 2, ByteArray(16))
    private val numbers = countOf(latentShape(bundle.manifest))
    private val legal = Request(prompt = "red", pictures = mapOf("image" to image))

    @Test
    fun `what the task cannot serve is refused with what is legal, before anything is loaded`() {
        val pictures = mapOf("image" to image)
        refused("a prompt", Request(pictures = pictures))
        refused(
            "takes no picture \"mask\"",
            Request("red", pictures = pictures + ("mask" to image)),
            "image",
        )
        refused("needs a picture \"image\"", Request("red"), "image")
        refused(
            "takes no tensor \"hint\"",
            Request("red", pictures = pictures, tensors = mapOf("hint" to one())),
            "image",
        )
        refused(
            "takes no number \"amount\"",
            Request("red", pictures = pictures, numbers = mapOf("amount" to 1.0)),
        )
        refused("no table for 5 steps", Request("red", pictures = pictures, steps = 5), "4", "6")
        refused("takes no strength", Request("red", pictures = pictures, strength = 0.5))
        refused(
            "as a picture and as a tensor",
            Request("red", pictures = pictures, tensors = mapOf("image" to fitted())),
        )
        refused("finite float32 [1, 3, 32, 48]", Request("red", tensors = mapOf("image" to one())))
        refused("with NaN or Inf", Request("red", tensors = mapOf("image" to fitted(Float.NaN))))
        refused(
            "with NaN or Inf",
            Request("red", tensors = mapOf("image" to fitted(Float.POSITIVE_INFINITY))),
        )
        refused(
            "1 to 100000000",
            Request("red", pictures = mapOf("image" to RgbaImage(0, 0, ByteArray(0)))),
        )
        refused(
            "1 to 100000000",
            Request("red", pictures = mapOf("image" to RgbaImage(10_001, 10_000, ByteArray(0)))),
        )
        val scales = GuidanceScales(text = 10_001.0)
        refused("guidance by text", Request("red", pictures = pictures, guidance = scales))
        refused(
            "guidance by text",
            Request("red", pictures = pictures, guidance = GuidanceScales(text = Double.NaN)),
        )
        refused("seed", Request("red", pictures = pictures, noise = Noise.Seed(-1)))
        val sizes = arrayOf("$numbers, [1, 4, 4, 6]", "${6 * numbers}, [6, 4, 4, 6]")
        refused(
            "7 numbers",
            Request("red", pictures = pictures, noise = Noise.Values(FloatArray(7))),
            *sizes,
        )
        val infinite = FloatArray(numbers).also { it[3] = Float.NEGATIVE_INFINITY }
        refused("NaN or Inf", Request("red", pictures = pictures, noise = Noise.Values(infinite)))
        refused("surrogate", Request("\uD800", pictures = pictures))
        refused("surrogate", Request("red", "\uDC00", pictures = pictures))
    }

    @Test
    fun `what is legal is taken`() {
        val task = bundle.manifest.tasks.single()
        val prepared = Prepared.of(bundle.manifest, task, legal)
        assertEquals(task.steps, prepared.table?.steps)
        assertEquals(listOf(1, 3, 32, 48), prepared.pictures.getValue("image").shape.toList())
        assertEquals(0, prepared.seed)
        for (draws in listOf(numbers, 6 * numbers)) {
            val values =
                Request("red", pictures = legal.pictures, noise = Noise.Values(FloatArray(draws)))
            assertNull(Prepared.of(bundle.manifest, task, values).seed)
        }
        val scaled = Request("red", "blue", legal.pictures, guidance = GuidanceScales(2.0, -3.0))
        val guidance = Prepared.of(bundle.manifest, task, scaled).guidance
        assertEquals(listOf(2.0, -3.0), listOf(guidance.text, guidance.image))
    }

    @Test
    fun `what other kinds of tasks do not take is refused`() {
        val task = bundle.manifest.tasks.single()
        val numbers = mapOf("amount" to NumberRange(1.0, 0.0, 2.0))
        val mask = mapOf("mask" to PictureInput(PictureKind.MASK, Filter.LANCZOS, Range.SIGNED))
        val prompted = task.flow.calls.filter { it.id !in promptedCalls(task) }
        val fixed =
            of(
                task,
                task.inputs,
                Flow(prompted, null, task.flow.prediction, null, task.flow.picture),
                "a dog",
            )
        refusedBy(fixed, "has its own prompt, \"a dog\"", legal)
        refusedBy(
            fixed,
            "takes no negative prompt",
            Request(negativePrompt = "blue", pictures = legal.pictures),
        )
        val masked =
            of(task, TaskInputs(task.inputs.pictures + mask, emptyMap(), numbers), task.flow)
        refusedBy(masked, "needs a mask \"mask\"", legal, "image", "mask")
        val both = legal.pictures + ("mask" to image)
        for (number in listOf(-0.1, 2.1, Double.NaN)) {
            refusedBy(
                masked,
                "\"amount\" must be 0.0 to 2.0",
                Request("red", pictures = both, numbers = mapOf("amount" to number)),
            )
        }
        val tensor =
            of(
                task,
                TaskInputs(task.inputs.pictures, mapOf("label" to intArrayOf(1, 5)), emptyMap()),
                task.flow,
            )
        refusedBy(tensor, "needs a tensor \"label\"", legal, "label")
        val loopless =
            of(task, task.inputs, Flow(task.flow.calls, null, null, null, task.flow.picture))
        refusedBy(
            loopless,
            "takes no step count",
            Request("red", pictures = legal.pictures, steps = 4),
        )
        refusedBy(
            loopless,
            "takes no strength",
            Request("red", pictures = legal.pictures, strength = 1.0),
        )
    }

    @Test
    fun `an unknown task is refused with the tasks that are there`() {
        val error =
            assertThrows(MtuException.RequestRefused::class.java) {
                Pipeline.open(bundle, FakeRuntime(), "inpaint")
            }
        assertEquals(listOf("edit"), error.legal)
    }

    @Test
    fun `a runtime of another target is refused`() {
        val error =
            assertThrows(MtuException.RuntimeMissing::class.java) {
                Pipeline.open(bundle, FakeRuntime(Target.EXECUTORCH))
            }
        assertEquals("io.mtuexport:mtu-onnx", error.artefact)
    }

    private fun of(task: Task, inputs: TaskInputs, flow: Flow, prompt: String? = null) =
        Task(task.name, task.guidance, task.steps, null, prompt, inputs, flow)

    private fun refusedBy(task: Task, what: String, request: Request, vararg legal: String) {
        val error =
            assertThrows(
                MtuException.RequestRefused::class.java,
                { Prepared.of(bundle.manifest, task, request) },
                what,
            )
        assertRefusal(error, what, legal)
    }

    private fun refused(what: String, request: Request, vararg legal: String) {
        val runtime = FakeRuntime()
        Pipeline.open(bundle, runtime).use { pipeline ->
            val error =
                assertThrows(
                    MtuException.RequestRefused::class.java,
                    { runBlocking { pipeline.generate(request).collect() } },
                    what,
                )
            assertRefusal(error, what, legal)
        }
        assertEquals(emptyList<String>(), runtime.log, what)
    }

    private fun assertRefusal(
        error: MtuException.RequestRefused,
        what: String,
        legal: Array<out String>,
    ) {
        assertEquals(true, what in error.what, error.what)
        assertEquals(legal.toList(), error.legal, error.what)
    }

    private fun one() = Tensor.Floats(intArrayOf(1), FloatArray(1))

    private fun fitted(number: Float = 0f) =
        Tensor.Floats(intArrayOf(1, 3, 32, 48), FloatArray(3 * 32 * 48).also { it[7] = number })
}
