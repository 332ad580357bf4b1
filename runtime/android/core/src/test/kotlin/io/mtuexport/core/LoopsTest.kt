package io.mtuexport.core

import io.mtuexport.testkit.ClosedForm
import io.mtuexport.testkit.TestData
import java.io.File
import kotlin.math.abs
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class LoopsTest {
    private val data = TestData.open()
    private val file = Json.parseObject(File(data.folder, "loops.json").readBytes(), "loops.json")
    private val tensors = data.tensors("loops.safetensors")
    private val parts = file.members("parts").associate { it.text("name") to FormulaPart(it) }

    /** A part of the vectors: the formula, and what the flow asks of a part. */
    private class FormulaPart(json: JsonObject) {
        val part =
            Part(
                name = json.text("name"),
                kind = PartKind.NETWORK,
                file = FileRecord("", 0, ""),
                data = emptyList(),
                entries = emptyMap(),
                inputs = specs(json.members("inputs")),
                outputs = specs(json.members("outputs")),
                taskInputs = emptyMap(),
                weightBytes = 0,
                taskWeightBytes = emptyMap(),
                sharedWeightBytes = 0,
                flopsConvLinear = 0,
                flopsTotal = 0,
                parameters = 0,
                quantisedActivations = null,
                witness = emptySet(),
            )
        val formula =
            ClosedForm(
                part.inputs,
                part.outputs,
                json.members("inputs").map { it.number("weight") },
            )

        private fun specs(list: List<JsonObject>) =
            list.map {
                val shape =
                    (it.getValue("shape") as List<*>)
                        .map { extent -> (extent as Double).toInt() }
                        .toIntArray()
                TensorSpec(
                    it.text("name"),
                    shape,
                    ElementType.valueOf(it.text("dtype").uppercase()),
                )
            }
    }

    @TestFactory
    fun `each loop gives what the vectors say`(): List<DynamicTest> {
        val cases = file.members("cases")
        assertTrue(cases.size >= 28)
        return cases.map { case -> dynamicTest(case.text("name")) { check(case) } }
    }

    @Test
    fun `a part sees a batch for each chunk of branches and no more`() {
        val case =
            file.members("cases").first {
                it.text("name") == "text_image in batches of 2, negative"
            }
        var runs = 0
        check(case) { call, _ -> if (call.stage == When.PASS) runs += 1 }
        val passes = manifest(case).schedules.first { it.steps == 6 }.passes.size
        assertEquals(2 * passes, runs) // three branches
    }

    @Test
    fun `a batch that is not full repeats its last branch`() {
        val case =
            file.members("cases").first {
                it.text("name") == "text_image in batches of 4, negative"
            }
        check(case) { call, inputs ->
            if (call.stage != When.PASS) return@check
            val entries =
                (inputs.getValue("text") as Tensor.Floats).let { text ->
                    List(4) { text.entry(it).data }
                }
            assertArrayEquals(entries[2], entries[3])
            assertFalse(entries[0].contentEquals(entries[3]))
        }
    }

    @Test
    fun `the first x is formed of coefficients rounded to float32, and rounded once`() {
        val noise = Tensor.Floats(intArrayOf(1, 1000), NumpyNoise(1).draws(1000))
        val picture = Tensor.Floats(intArrayOf(1, 1000), NumpyNoise(2).draws(1000))
        val table = Schedule(1, 0.5, 0.1, 0.7, emptyList())
        val actual = Loop(table, noise) { latent, _ -> latent }.start(picture).data
        fun sums(one: Double, other: Double) =
            FloatArray(1000) { (one * noise.data[it] + other * picture.data[it]).toFloat() }
        assertArrayEquals(sums(0.1f.toDouble(), 0.7f.toDouble()), actual)
        assertFalse(sums(0.1, 0.7).contentEquals(actual)) // so the numbers tell them apart
    }

    private fun manifest(case: JsonObject): Manifest {
        val latent = file.member("latent")
        return Manifest(
            name = "loops",
            schemaVersion = "2.0",
            target = Target.ONNX,
            versions = emptyMap(),
            height = file.member("image").int("height"),
            width = file.member("image").int("width"),
            latent = Latent(latent.int("channels"), latent.int("factor")),
            tasks = listOf(ManifestReader.task(case.member("task"))),
            parts = parts.values.map { it.part },
            tokenizers = emptyList(),
            files = emptyList(),
            schedules = file.members("schedules").map(ManifestReader::schedule),
            golden = null,
            proof = emptyList(),
        )
    }

    private fun check(case: JsonObject, called: (Call, Map<String, Tensor>) -> Unit = { _, _ -> }) {
        val manifest = manifest(case)
        val task = manifest.tasks.single()
        val prepared = Prepared.of(manifest, task, request(manifest, task, case.member("request")))
        val sources =
            object : FlowSources {
                override fun inputsOf(call: Call) = parts.getValue(call.part).part.inputs

                override fun constant(name: String) =
                    tensors.getValue("constants/$name") as Tensor.Floats

                override fun tokens(tokenizer: String, text: String) =
                    tensors.getValue("ids/$tokenizer/$text") as Tensor.Ints
            }
        val evaluation =
            Evaluation(task, prepared, batchOf(manifest, task), sources) { call, inputs ->
                called(call, inputs)
                val formula = parts.getValue(call.part)
                for (spec in formula.part.inputs) assertArrayEquals(
                    spec.shape,
                    inputs.getValue(spec.name).shape,
                )
                formula.formula.run(inputs)
            }
        evaluation.runOnce()
        val latent =
            prepared.table?.let {
                Loop(it, checkNotNull(prepared.noise), evaluation::denoise).run(evaluation.start())
            }
        if (latent != null) assertNear("expected/${case.text("name")}/latent", latent)
        assertNear("expected/${case.text("name")}/picture", evaluation.picture(latent))
    }

    private fun request(manifest: Manifest, task: Task, json: JsonObject): Request {
        val noise = tensors.getValue("noise") as Tensor.Floats
        val steps = json.numberOrNull("steps")?.toInt()
        val strength = json.numberOrNull("strength")
        val table = manifest.schedules.firstOrNull { it.steps == steps && it.strength == strength }
        val numbers = (1 + (table?.draws ?: 0)) * noise.data.size / noise.shape[0]
        return Request(
            prompt = json.textOrNull("prompt"),
            negativePrompt = json.textOrNull("negative_prompt"),
            tensors =
                task.inputs.pictures.keys.associateWith {
                    tensors.getValue("pictures/$it") as Tensor.Floats
                } +
                    task.inputs.tensors.keys.associateWith {
                        tensors.getValue("tensors/$it") as Tensor.Floats
                    },
            numbers = json.memberOrNull("numbers").orEmpty().mapValues { it.value as Double },
            steps = steps.takeIf { task.flow.prediction != null },
            strength = strength,
            guidance =
                json.memberOrNull("guidance")?.let {
                    GuidanceScales(it.numberOrNull("text"), it.numberOrNull("image"))
                } ?: GuidanceScales(),
            noise = Noise.Values(noise.data.copyOf(numbers)),
        )
    }

    private fun assertNear(name: String, actual: Tensor.Floats) {
        val expected = tensors.getValue(name) as Tensor.Floats
        assertArrayEquals(expected.shape, actual.shape)
        val largest = expected.data.maxOf { abs(it) }
        val worst = expected.data.indices.maxOf { abs(expected.data[it] - actual.data[it]) }
        assertTrue(worst <= 0.00002f * largest) {
            "$name is off by $worst, its largest number is $largest"
        }
    }
}
