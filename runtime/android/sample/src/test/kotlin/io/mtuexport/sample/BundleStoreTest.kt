package io.mtuexport.sample

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class BundleStoreTest {
    @TempDir lateinit var place: Path
    private val root: File
        get() = File(place.toFile(), "bundles")

    private fun entry(path: String, text: String, bytes: Long = text.length.toLong()) =
        BundleStore.Entry(path, bytes) { text.byteInputStream() }

    private fun BundleStore.add(
        name: String,
        vararg entries: BundleStore.Entry,
        check: (File) -> Unit = {},
    ) = add(name, entries.toList(), { _, _ -> }, check)

    @Test
    fun `a tree is copied, checked before it counts, and listed by name`() {
        val store = BundleStore(root)
        val steps = ArrayList<Pair<Long, Long>>()
        val folder =
            store.add(
                "inpaint",
                listOf(entry("manifest.json", "{}"), entry("unet/model.onnx", "weights")),
                { copied, total -> steps += copied to total },
            ) {
                assertEquals("weights", File(it, "unet/model.onnx").readText())
                assertTrue(store.bundles().isEmpty())
            }
        assertEquals(listOf(2L to 9L, 9L to 9L), steps)
        assertEquals(listOf(folder), store.bundles())
        assertEquals("{}", File(folder, "manifest.json").readText())
        assertFalse(store.receipt(folder).path.startsWith(folder.path + File.separator))
        assertEquals("inpaint 2", store.add("inpaint", entry("a", "a")).name)
        store.receipt(folder).writeText("receipt")
        store.remove(folder)
        assertEquals(listOf("inpaint 2"), store.bundles().map { it.name })
        assertFalse(store.receipt(folder).exists())
    }

    @Test
    fun `what is refused or cannot be read leaves nothing`() {
        val store = BundleStore(root)
        assertThrows(IllegalStateException::class.java) {
            store.add("bad", entry("a", "a")) { throw IllegalStateException("rule 6") }
        }
        val broken =
            BundleStore.Entry("b", 1) {
                object : InputStream() {
                    override fun read(): Int = throw IOException("unplugged")
                }
            }
        assertThrows(IOException::class.java) { store.add("bad", entry("a", "a"), broken) }
        assertThrows(IOException::class.java) {
            store.add("large", entry("a", "a", Long.MAX_VALUE / 2))
        }
        assertThrows(IllegalArgumentException::class.java) { store.add("empty") }
        assertThrows(IOException::class.java) { store.add("out", entry("../../out", "a")) }
        assertTrue(store.bundles().isEmpty())
        assertFalse(File(root, ".drafts/copy").exists())
        assertFalse(File(place.toFile(), "out").exists())
    }

    @Test
    fun `a copy that was stopped with the app is removed`() {
        File(root, ".drafts/copy").mkdirs()
        File(root, ".drafts/copy/weights").writeText("half")
        assertTrue(BundleStore(root).bundles().isEmpty())
        assertFalse(File(root, ".drafts/copy").exists())
    }

    @Test
    fun `names are plain`() {
        val store = BundleStore(root)
        for ((name, plain) in
            listOf("../x" to "x", "" to "bundle", "..." to "bundle", "a/b" to "ab")) {
            assertEquals(plain, store.add(name, entry("a", "a")).name.substringBefore(" "))
        }
    }
}
