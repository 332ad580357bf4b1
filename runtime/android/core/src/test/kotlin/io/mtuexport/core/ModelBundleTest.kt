package io.mtuexport.core

import io.mtuexport.core.TestBundles.items
import io.mtuexport.core.TestBundles.members
import java.io.File
import java.nio.file.Files
import java.util.concurrent.Callable
import java.util.concurrent.Executors
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

internal class ModelBundleTest {
    @TempDir lateinit var folder: File

    @Test
    fun `what a bundle says of itself`() {
        val bundle = ModelBundle.open(TestBundles.original)
        assertEquals("edit-onnx-int8", bundle.name)
        assertEquals(Target.ONNX, bundle.target)
        assertEquals(32 to 48, bundle.height to bundle.width)
        assertEquals("1.28.0", bundle.versions["onnxruntime"])
        assertEquals(
            BundleFiles.sha256(TestBundles.original.resolve(MANIFEST).readBytes()),
            bundle.manifestSha256,
        )
        val task = bundle.tasks.single()
        assertEquals("edit", task.name)
        assertEquals(
            Triple(GuidanceKind.TEXT_IMAGE, 7.5, 1.6),
            task.guidance.run { Triple(kind, text, image) },
        )
        assertEquals(4, task.steps)
        assertEquals(
            listOf(TableKey(4, null), TableKey(6, null)),
            task.allowed.sortedBy { it.steps },
        )
        assertTrue(task.takesPrompt && task.takesNegativePrompt)
        assertEquals(mapOf("image" to PictureKind.PICTURE), task.pictures)
        assertEquals(listOf(null, null), listOf(task.strength, task.fixedPrompt))
        assertTrue(task.tensors.isEmpty() && task.numbers.isEmpty() && task.missing.isEmpty())
    }

    @Test
    fun `a part as a runtime needs it`() {
        val bundle = ModelBundle.open(TestBundles.original)
        val part = bundle.load(bundle.part("unet")!!, "edit")
        assertEquals(TestBundles.original.resolve("unet"), part.path)
        assertEquals("model.onnx", part.entry)
        assertEquals(
            listOf("sample", "timestep", "encoder_hidden_states"),
            part.inputs.map { it.name },
        )
        assertArrayEquals(intArrayOf(1, 8, 4, 6), part.inputs[0].shape)
        assertEquals(354270, part.bytes)
    }

    @Test
    fun `weights by what stays in memory`() {
        val bundle = ModelBundle.open(TestBundles.original)
        val weights = bundle.manifest.parts.associate { it.name to it.weightBytes }
        val others = weights.filterKeys { it != "unet" }.values
        assertEquals(weights.values.sum(), bundle.weightBytes("edit", Memory.ALL))
        assertEquals(
            weights.getValue("unet") + others.max(),
            bundle.weightBytes("edit", Memory.UNET),
        )
        assertEquals(weights.values.max(), bundle.weightBytes("edit", Memory.LEAST))
        assertThrows<MtuException.RequestRefused> { bundle.weightBytes("other", Memory.ALL) }
    }

    @Test
    fun `a task by name, or the only one`() {
        val bundle = ModelBundle.open(TestBundles.original)
        assertSame(bundle.task(null), bundle.task("edit"))
        val refusal = assertThrows<MtuException.RequestRefused> { bundle.task("paint") }
        assertEquals(listOf("edit"), refusal.legal)
    }

    @Test
    fun `constants, goldens and the tokenizer`() {
        val bundle = ModelBundle.open(TestBundles.original)
        assertArrayEquals(
            intArrayOf(1, 77, 16),
            bundle.constant("empty/encoder_hidden_states").shape,
        )
        assertThrows<MtuException.BundleRefused> { bundle.constant("other") }
        assertArrayEquals(intArrayOf(1, 8, 4, 6), bundle.goldens!!.shape("unet/edit/0/sample"))
        assertSame(bundle.tokenizer("tokenizer"), bundle.tokenizer("tokenizer"))
        assertEquals(862, bundle.tokenizer("tokenizer").encode("a").ids.data[0])
    }

    @Test
    fun `a bundle of which a part is missing opens, and its task says so`() {
        val copy = TestBundles.copy(folder)
        TestBundles.change(copy) { manifest ->
            manifest["parts"].items().removeIf { it.members()["name"] == "text_encoder" }
            manifest["tokenizers"].items().clear()
            manifest["files"].items().removeIf { it.members()["path"] == "tokenizer" }
        }
        copy.resolve("text_encoder").deleteRecursively()
        copy.resolve("tokenizer").deleteRecursively()
        val bundle = ModelBundle.open(copy)
        assertEquals(listOf("text_encoder"), bundle.tasks.single().missing)
        assertEquals(null, bundle.part("text_encoder"))
        val all = bundle.manifest.parts.sumOf { it.weightBytes }
        assertEquals(all, bundle.weightBytes("edit", Memory.ALL))
    }

    @Test
    fun `no constants and no goldens`() {
        val copy = TestBundles.copy(folder)
        TestBundles.change(copy) { manifest ->
            manifest["files"].items().removeIf {
                it.members()["path"] in listOf(CONSTANTS, GOLDENS)
            }
            val unet = manifest["tasks"].items()[0].members()["flow"].members()["calls"].items()[2]
            unet.members()["inputs"].members()["encoder_hidden_states"].members().remove("empty")
        }
        check(copy.resolve(CONSTANTS).delete() && copy.resolve(GOLDENS).delete())
        val bundle = ModelBundle.open(copy)
        assertEquals(null, bundle.goldens)
        assertThrows<MtuException.BundleRefused> { bundle.constant("empty/encoder_hidden_states") }
    }

    @Test
    fun `another manifest than the expected one`() {
        val sha256 = ModelBundle.open(TestBundles.original).manifestSha256
        ModelBundle.open(TestBundles.original, Trust.Full(sha256.uppercase()))
        TestBundles.assertRefused(0, TestBundles.original, Trust.Full("0".repeat(64)))
    }

    @Test
    fun `a target that is none`() {
        val copy = TestBundles.copy(folder)
        TestBundles.change(copy) { it["target"] = "tflite" }
        TestBundles.assertRefused(0, copy)
    }

    @Test
    fun `a folder that is none, is empty or is a link to a bundle`() {
        TestBundles.assertRefused(1, folder.resolve("nothing"))
        TestBundles.assertRefused(1, folder)
        TestBundles.assertRefused(1, TestBundles.original.resolve(MANIFEST))
        val link = folder.resolve("link")
        Files.createSymbolicLink(link.toPath(), TestBundles.original.absoluteFile.toPath())
        assertEquals("edit-onnx-int8", ModelBundle.open(link).name)
    }

    @Test
    fun `a tokenizer that is damaged is refused when it is read`() {
        val copy = TestBundles.copy(folder)
        copy.resolve("tokenizer/tokenizer.json").writeText("{}")
        TestBundles.change(copy) { TestBundles.seal(copy, it, "tokenizer") }
        val bundle = ModelBundle.open(copy)
        assertEquals(
            0,
            assertThrows<MtuException.BundleRefused> { bundle.tokenizer("tokenizer") }.rule,
        )
        copy.resolve("tokenizer").deleteRecursively()
        assertEquals(
            0,
            assertThrows<MtuException.BundleRefused> { bundle.tokenizer("tokenizer") }.rule,
        )
    }

    @Test
    fun `no file stays open, whatever is wrong`() {
        val copy = TestBundles.copy(folder)
        val bundle = ModelBundle.open(copy)
        bundle.constant("empty/encoder_hidden_states")
        bundle.tokenizer("tokenizer")
        bundle.goldens!!.read("unet/edit/0/sample")
        TestBundles.change(copy) { it["parts"].items()[0].members()["sha256"] = "0".repeat(64) }
        TestBundles.assertRefused(6, copy)
        copy.resolve(GOLDENS).writeText("x")
        TestBundles.change(copy) { TestBundles.seal(copy, it, "text_encoder") }
        TestBundles.change(copy) { TestBundles.seal(copy, it, GOLDENS) }
        TestBundles.assertRefused(10, copy)
        assumeTrue(File("/proc/self/fd").exists(), "open files are listed on Linux alone")
        val open =
            File("/proc/self/fd").listFiles()!!.mapNotNull { link ->
                runCatching { Files.readSymbolicLink(link.toPath()).toString() }.getOrNull()
            }
        assertTrue(open.isNotEmpty())
        assertFalse(open.any { it.startsWith(copy.path) }, open.joinToString("\n"))
    }

    @Test
    fun `several threads open and read at once`() {
        val threads = Executors.newFixedThreadPool(4)
        val shared = ModelBundle.open(TestBundles.original)
        val jobs =
            List(16) {
                Callable {
                    ModelBundle.open(TestBundles.original)
                    shared.tokenizer("tokenizer").encode("a photo").ids.data.toList() to
                        shared.goldens!!.floats("unet/edit/0/sample").data.toList()
                }
            }
        assertEquals(1, threads.invokeAll(jobs).map { it.get() }.toSet().size)
        threads.shutdown()
    }

    @Test
    fun `an interrupted thread stops reading, and refuses no bundle for it`() {
        val bundle = ModelBundle.open(TestBundles.original)
        Thread.currentThread().interrupt()
        assertThrows<InterruptedException> { ModelBundle.open(TestBundles.original) }
        assertFalse(Thread.currentThread().isInterrupted)
        Thread.currentThread().interrupt()
        bundle.constant("empty/encoder_hidden_states")
        bundle.tokenizer("tokenizer")
        assertTrue(Thread.interrupted())
        ModelBundle.open(TestBundles.original)
    }

    @Test
    fun `a message of a path of odd letters is one printable line`() {
        val copy = TestBundles.copy(folder)
        val odd = "a\n\u001b[31m"
        copy.resolve(odd).writeText("x")
        TestBundles.change(copy) { manifest ->
            val record = mapOf("path" to odd, "bytes" to 2.0, "sha256" to "0".repeat(64))
            manifest["files"].items().add(record)
        }
        val refusal = TestBundles.assertRefused(6, copy)
        assertEquals("rule 6: a??[31m: 1 bytes, the manifest says 2", refusal.message)
    }

    @Test
    fun `a manifest made to be slow is read all the same`() {
        val copy = TestBundles.copy(folder)
        TestBundles.change(copy) { manifest ->
            val table = manifest["loop"].members()["schedules"].items()[0].members()
            val pass = table["passes"].items().first().members()
            pass["columns"].members()["a"] = listOf(1.0)
            val passes = List(10_000) { pass }
            manifest["loop"].members()["schedules"] = listOf(table + ("passes" to passes))
            val unet =
                manifest["parts"].items().map { it.members() }.single { it["name"] == "unet" }
            val more =
                List(60) {
                    mapOf("name" to "$it", "shape" to listOf(1.0, 16.0), "dtype" to "float32")
                }
            unet["inputs"].items().addAll(more)
            val calls = manifest["tasks"].items()[0].members()["flow"].members()["calls"].items()
            val call = calls[2].members()
            val columns = List(16) { mapOf("kind" to "column", "name" to "a") }
            for (spec in more) {
                call["inputs"].members()[spec["name"] as String] =
                    mapOf("sources" to columns, "axis" to 1.0)
            }
            calls.addAll(2, List(25) { call + ("id" to "more_$it") })
        }
        assertTrue(copy.resolve(MANIFEST).length() > 2_000_000)
        assertEquals(10_000, ModelBundle.open(copy).manifest.schedules.single().passes.size)
    }
}
