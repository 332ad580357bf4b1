package io.mtuexport.core

import java.io.File
import java.nio.file.Files
import java.nio.file.attribute.FileTime
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

internal class ReceiptTest {
    @TempDir lateinit var folder: File
    private lateinit var bundle: File
    private lateinit var file: File

    @BeforeEach
    fun copy() {
        bundle = TestBundles.copy(folder)
        file = folder.resolve("receipt")
    }

    private fun open() = ModelBundle.open(bundle, Trust.Receipt(file))

    /** A receipt of the bundle as it is, whose files are new. */
    private fun writeReceipt() {
        val files = BundleFiles(bundle)
        val manifest = ManifestReader.manifest(TestBundles.manifest(bundle))
        manifest.records.forEach { files.checkPath(it.path) }
        val sha256 = BundleFiles.sha256(bundle.resolve(MANIFEST).readBytes())
        Receipt(file, bundle, settledMillis = -1000)
            .apply { matches(manifest, sha256, files) }
            .write(manifest, sha256, files)
    }

    /** Whether a change of one bit, with the same size and time of modification, gets by. */
    private fun changesBit(path: String) {
        val target = bundle.resolve(path)
        val time = target.lastModified()
        val bytes =
            target.readBytes().also { it[it.size / 2] = (it[it.size / 2].toInt() xor 1).toByte() }
        target.writeBytes(bytes)
        check(target.setLastModified(time))
    }

    @Test
    fun `the second opening reads no file of a part`() {
        writeReceipt()
        val unreadable = bundle.resolve("unet/model.onnx")
        val before = TestBundles.bytesRead()
        open()
        val withReceipt = TestBundles.bytesRead() - before
        ModelBundle.open(bundle)
        val full = TestBundles.bytesRead() - before - withReceipt
        assertTrue(
            full - withReceipt > unreadable.length(),
            "$withReceipt and $full bytes were read",
        )
    }

    @Test
    fun `any change means a full check`() {
        writeReceipt()
        open()
        val changes =
            listOf<(File) -> Unit>(
                { changesBit("unet/model.onnx") },
                { changesBit("constants.safetensors") },
                { changesBit("goldens.safetensors") },
                { it.resolve("unet/more.txt").writeText("") },
                { it.resolve("tokenizer/merges.txt").renameTo(it.resolve("tokenizer/merge.txt")) },
            )
        for (change in changes) {
            bundle.deleteRecursively()
            TestBundles.copy(folder)
            writeReceipt()
            open()
            change(bundle)
            TestBundles.assertRefused(6, bundle, Trust.Receipt(file))
        }
    }

    @Test
    fun `a file in the place of another of its size and time is another`() {
        writeReceipt()
        val target = bundle.resolve("unet/model.onnx")
        val time = target.lastModified()
        val other = folder.resolve("other")
        target.copyTo(other)
        other.writeBytes(other.readBytes().also { it[100] = (it[100].toInt() xor 1).toByte() })
        check(other.setLastModified(time))
        Files.move(
            other.toPath(),
            target.toPath(),
            java.nio.file.StandardCopyOption.REPLACE_EXISTING,
        )
        TestBundles.assertRefused(6, bundle, Trust.Receipt(file))
    }

    @Test
    fun `a touched file is read again, and taken`() {
        writeReceipt()
        val old = file.readText()
        Files.setLastModifiedTime(
            bundle.resolve("unet/model.onnx").toPath(),
            FileTime.fromMillis(5),
        )
        val before = TestBundles.bytesRead()
        open()
        assertTrue(TestBundles.bytesRead() - before > bundle.resolve("unet/model.onnx").length())
        writeReceipt()
        assertNotEquals(old, file.readText())
    }

    @Test
    fun `another manifest is not the one of the receipt`() {
        writeReceipt()
        TestBundles.change(bundle) { it["name"] = "another name" }
        assertEquals("another name", open().name)
        TestBundles.change(bundle) { it["schema_version"] = "1.0" }
        TestBundles.assertRefused(2, bundle, Trust.Receipt(file))
        val known = ModelBundle.open(TestBundles.original).manifestSha256
        TestBundles.assertRefused(0, bundle, Trust.Receipt(file, known))
    }

    @Test
    fun `files that are too new get no receipt, a damaged receipt is none`() {
        open()
        assertFalse(file.exists())
        writeReceipt()
        val good = file.readText()
        changesBit("unet/model.onnx")
        for (text in listOf("", "{}", good.dropLast(1), "$good ", good.replace("unet", "UNET"))) {
            file.writeText(text)
            TestBundles.assertRefused(6, bundle, Trust.Receipt(file))
        }
    }

    @Test
    fun `a receipt that cannot be written is no error, one inside the bundle is`() {
        bundle.resolve("inside").let { inside ->
            assertThrows<IllegalArgumentException> {
                ModelBundle.open(bundle, Trust.Receipt(inside))
            }
        }
        ModelBundle.open(bundle, Trust.Receipt(folder.resolve("no/such/folder/receipt")))
        assertThrows<IllegalArgumentException> { Trust.Full("abc") }
        assertEquals(listOf(bundle.name), folder.list()!!.toList())
    }

    @Test
    fun `a receipt is written once its files have settled`() {
        val files = BundleFiles(bundle)
        val manifest = ManifestReader.manifest(TestBundles.manifest(bundle))
        manifest.records.forEach { files.checkPath(it.path) }
        val receipt = Receipt(file, bundle, settledMillis = -1000)
        assertFalse(receipt.matches(manifest, "hash", files))
        changesBit("unet/model.onnx")
        receipt.write(manifest, "hash", files) // a file changed between the two
        assertFalse(file.exists())
        assertFalse(receipt.matches(manifest, "hash", files))
        receipt.write(manifest, "hash", files)
        assertTrue(receipt.matches(manifest, "hash", files))
        assertFalse(receipt.matches(manifest, "other", files))
    }
}
