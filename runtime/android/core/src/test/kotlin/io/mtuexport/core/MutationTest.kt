package io.mtuexport.core

import io.mtuexport.core.TestBundles.items
import io.mtuexport.core.TestBundles.members
import java.io.File
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/**
 * Random changes of a good bundle: it is refused or taken, and nothing else is thrown. More of
 * them: `mvn test -Dtest=MutationTest -Dmutations=20`, twenty times as many with other seeds.
 */
internal class MutationTest {
    @TempDir lateinit var folder: File

    private val times = Integer.getInteger("mutations", 1)

    private val odd: List<Any?> =
        listOf(
            null,
            true,
            false,
            0.0,
            -1.0,
            1.0,
            0.5,
            2.0,
            3.0,
            64.0,
            65.0,
            1e9,
            2147483647.0,
            2147483648.0,
            9007199254740991.0,
            1e300,
            -1e300,
            "",
            "x",
            "edit",
            "unet",
            "image",
            "tokens",
            "latent",
            "number",
            "guided",
            "picture",
            "output",
            "tensor",
            "constant",
            "column",
            "once",
            "pass",
            "end",
            "sample",
            "timestep",
            "../x",
            "a/b",
            "\u0000",
            "\ud83d\ude00",
            "x".repeat(300),
            emptyList<Any?>(),
            emptyMap<String, Any?>(),
            listOf(1.0),
            listOf(null),
            mapOf("kind" to "latent"),
            mapOf("kind" to "number", "name" to "x"),
            mapOf("kind" to "picture", "name" to "image", "every" to 8.0),
            mapOf("sources" to listOf(mapOf("kind" to "latent"))),
            mapOf("call" to "unet", "name" to "out_sample"),
        )

    /** Counts what opening does by rule; -1 where it opens. */
    private fun outcome(bundle: File): Int =
        try {
            ModelBundle.open(bundle)
            -1
        } catch (refusal: MtuException.BundleRefused) {
            assertTrue(
                refusal.message!!.length < 1000 && refusal.message!!.lines().size == 1,
                refusal.message,
            )
            refusal.rule
        }

    @Test
    fun `of the manifest`() {
        val bundle = TestBundles.copy(folder)
        val good = TestBundles.manifest(bundle)
        val random = Random(3 * times)
        val outcomes = HashMap<Int, Int>()
        repeat(1000 * times) {
            val changed = TestBundles.mutable(good).members()
            repeat(random.nextInt(1, 4)) { change(changed, random) }
            TestBundles.writeManifest(bundle, changed)
            outcomes.merge(outcome(bundle), 1, Int::plus)
        }
        for (rule in listOf(-1, 3, 12)) assertTrue(
            outcomes.getOrDefault(rule, 0) > 3,
            "$rule in $outcomes",
        )
    }

    @Test
    fun `of the flow and the parts, where rules 11 and 12 look`() {
        val bundle = TestBundles.copy(folder)
        val good = TestBundles.manifest(bundle)
        val random = Random(4 * times)
        val outcomes = HashMap<Int, Int>()
        repeat(1000 * times) {
            val changed = TestBundles.mutable(good).members()
            val flow = changed["tasks"].items()[0].members()["flow"]
            val inputs = changed["tasks"].items()[0].members()["inputs"]
            val places =
                listOf(
                    flow,
                    flow,
                    inputs,
                    changed["parts"],
                    changed["loop"],
                    changed["latent"],
                    changed["tokenizers"],
                )
            repeat(random.nextInt(1, 3)) { change(places.random(random), random) }
            TestBundles.writeManifest(bundle, changed)
            outcomes.merge(outcome(bundle), 1, Int::plus)
        }
        for (rule in listOf(-1, 3, 11, 12)) assertTrue(
            outcomes.getOrDefault(rule, 0) > 3,
            "$rule in $outcomes",
        )
    }

    @Test
    fun `of the manifest's bytes`() {
        val bundle = TestBundles.copy(folder)
        val good = bundle.resolve(MANIFEST).readBytes()
        val random = Random(5 * times)
        repeat(800 * times) {
            val bytes =
                good.copyOf(if (random.nextInt(4) == 0) random.nextInt(good.size) else good.size)
            repeat(random.nextInt(1, 4)) {
                if (bytes.isNotEmpty())
                    bytes[random.nextInt(bytes.size)] = random.nextInt().toByte()
            }
            bundle.resolve(MANIFEST).writeBytes(bytes)
            outcome(bundle)
        }
    }

    @Test
    fun `of files, sealed again`() {
        val bundle = TestBundles.copy(folder)
        val manifest = TestBundles.manifest(bundle)
        val random = Random(6 * times)
        val targets =
            mapOf(
                CONSTANTS to CONSTANTS,
                GOLDENS to GOLDENS,
                "unet/model.onnx" to "unet",
                "tokenizer/tokenizer.json" to "tokenizer",
            )
        val outcomes = HashMap<Int, Int>()
        repeat(400 * times) {
            val (path, record) = targets.entries.random(random)
            val file = bundle.resolve(path)
            val good = file.readBytes()
            val bytes =
                good.copyOf(if (random.nextInt(4) == 0) random.nextInt(good.size) else good.size)
            val head = minOf(bytes.size, if (random.nextBoolean()) 400 else bytes.size)
            if (head > 0)
                repeat(random.nextInt(1, 4)) {
                    bytes[random.nextInt(head)] = random.nextInt().toByte()
                }
            file.writeBytes(bytes)
            TestBundles.seal(bundle, manifest, record)
            TestBundles.writeManifest(bundle, manifest)
            val outcome = outcome(bundle)
            outcomes.merge(outcome, 1, Int::plus)
            if (outcome == -1) encodes(bundle)
            file.writeBytes(good)
            TestBundles.seal(bundle, manifest, record)
        }
        for (rule in listOf(-1, 8, 10)) assertTrue(
            outcomes.getOrDefault(rule, 0) > 3,
            "$rule in $outcomes",
        )
    }

    private fun encodes(bundle: File) {
        try {
            ModelBundle.open(bundle)
                .tokenizer("tokenizer")
                .encode("a photo of <|startoftext|> \ud83d\ude00'll 12")
        } catch (refusal: MtuException.BundleRefused) {
            assertTrue(refusal.rule == 0, refusal.message)
        }
    }

    /** Replaces, deletes, copies or adds something at a random place below a node. */
    private fun change(node: Any?, random: Random) {
        val children: Collection<Any?> =
            when (node) {
                is Map<*, *> -> node.values
                is List<*> -> node
                else -> return
            }
        val nested =
            children.filter {
                (it is Map<*, *> && it.isNotEmpty()) || (it is List<*> && it.isNotEmpty())
            }
        if (nested.isNotEmpty() && random.nextInt(4) > 0)
            return change(nested.random(random), random)
        val value =
            TestBundles.mutable(
                if (random.nextInt(3) == 0) children.randomOrNull(random) else odd.random(random)
            )
        if (node is Map<*, *>) {
            val key = node.keys.filterIsInstance<String>().randomOrNull(random) ?: "x"
            when (random.nextInt(4)) {
                0 -> node.members().remove(key)
                1 -> node.members()["name"] = value
                else -> node.members()[key] = value
            }
        } else {
            val items = node.items()
            when (random.nextInt(4)) {
                0 -> if (items.isNotEmpty()) items.removeAt(random.nextInt(items.size))
                1 -> items.add(random.nextInt(items.size + 1), value)
                else -> if (items.isNotEmpty()) items[random.nextInt(items.size)] = value
            }
        }
    }
}
