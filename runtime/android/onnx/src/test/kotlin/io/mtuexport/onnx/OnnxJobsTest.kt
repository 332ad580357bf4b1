package io.mtuexport.onnx

import io.mtuexport.core.bench.JobRunner
import io.mtuexport.core.bench.RunnerName
import java.io.File
import java.nio.file.Files
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/**
 * A job of the benchmark suite in ONNX Runtime: the test bundle's text encoder on its own golden.
 */
class OnnxJobsTest {
    @TempDir lateinit var place: Path

    private val bundle = File(System.getProperty("mtu.runtime"), "testdata/edit-onnx-int8")

    private fun run(options: String, threads: Int = 1): Pair<Int, String> {
        val folder = place.toFile()
        val link = File(folder, "bundle").toPath()
        if (!Files.exists(link)) Files.createSymbolicLink(link, bundle.toPath())
        val golden = "text_encoder/edit/0"
        File(folder, "job.json")
            .writeText(
                """
            {"format": 1, "engine": "onnx", "options": $options, "threads": $threads, "samples": 2,
             "parts": {"text": {"path": "bundle/text_encoder", "entry": "model.onnx",
               "inputs": [{"name": "input_ids", "shape": [1, 77], "dtype": "int32"}],
               "outputs": [{"name": "last_hidden_state", "shape": [1, 77, 16], "dtype": "float32"}]}},
             "tensors": "bundle/goldens.safetensors",
             "program": [{"op": "call", "part": "text", "inputs": {"input_ids": "$golden/input_ids"}, "outputs": {"last_hidden_state": "y"}}],
             "expected": {"y": "$golden/last_hidden_state"}}
            """
                    .trimIndent()
            )
        val result = File(folder, "result.json")
        val runner = JobRunner(mapOf("onnx" to OnnxJobs::engine), RunnerName("test", "1", "Kotlin"))
        return Pair(runner.run(File(folder, "job.json"), result), result.readText())
    }

    @Test
    fun `goldens are reached, with every option`() {
        val number = Regex("\"psnr_db\":\\{\"y\":([0-9.]+)")
        for (options in
            listOf(
                "{}",
                """{"session.qdq_matmulnbits_accuracy_level": "1"}""",
                """{"graph_optimization": "none", "arena": "0"}""",
            )) {
            val (code, result) = run(options)
            assertEquals(0, code, result)
            assertTrue(number.find(result)!!.groupValues[1].toDouble() > 40, result)
            assertTrue(
                "\"name\":\"onnxruntime\",\"version\":\"${OnnxRuntime.version}\"" in result,
                result,
            )
        }
    }

    @Test
    fun `what is not there is a bad file`() {
        val (code, result) = run("{}")
        assertEquals(0, code, result)
        Files.delete(File(place.toFile(), "bundle").toPath())
        Files.createSymbolicLink(File(place.toFile(), "bundle").toPath(), place)
        assertEquals(3, run("{}").first)
    }
}
