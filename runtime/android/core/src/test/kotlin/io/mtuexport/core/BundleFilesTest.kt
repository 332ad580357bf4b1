package io.mtuexport.core

import java.io.File
import java.io.RandomAccessFile
import java.nio.file.Files
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

internal class BundleFilesTest {
    @TempDir lateinit var folder: File

    private fun write(path: String, text: String = path) {
        folder.resolve(path).apply { parentFile.mkdirs() }.writeText(text)
    }

    private fun files() = BundleFiles(folder)

    private fun refusal(path: String): String =
        assertThrows<Damaged>(path) { files().checkPath(path) }.what

    @Test
    fun `files of a folder in the order of code points, without those of macOS`() {
        for (name in
            listOf(
                "b",
                "a/z",
                "a.x",
                "._b",
                ".DS_Store",
                "a/._z",
                "._c/x",
                "\uff5e",
                "\ud83d\ude00",
                "aB",
            )) {
            write("part/$name")
        }
        val counted = files().also { it.checkPath("part") }.counted("part")
        val names = listOf("._c/x", "a.x", "a/z", "aB", "b", "\uff5e", "\ud83d\ude00")
        assertEquals(names, counted.map { it.name })
        val lines =
            names.joinToString("") {
                "${BundleFiles.sha256(folder.resolve("part/$it").readBytes())}  $it\n"
            }
        val size = names.sumOf { folder.resolve("part/$it").length() }
        val record = FileRecord("part", size, BundleFiles.sha256(lines.toByteArray()))
        files()
            .apply { checkPath("part") }
            .run {
                checkSize(record)
                checkHash(record)
            }
    }

    @Test
    fun `code points, not UTF-16 units`() {
        val order =
            listOf(
                "",
                "a",
                "a\u0000",
                "aa",
                "b",
                "\ud7ff",
                "\ue000",
                "\uffff",
                "\ud800\udc00",
                "\udbff\udfff",
            )
        for ((i, one) in order.withIndex()) {
            for ((j, other) in order.withIndex()) {
                assertEquals(i.compareTo(j), Integer.signum(compareCodePoints(one, other)), "$i $j")
            }
        }
    }

    @Test
    fun `paths that are not plain`() {
        write("a/b")
        for (path in
            listOf(
                "",
                ".",
                "..",
                "/a",
                "a/",
                "a//b",
                "./a",
                "a/../a",
                "a\\b",
                "c:",
                "a\u0000",
                "../x",
                ".DS_Store",
                "a/._b",
            )) {
            refusal(path)
        }
        for (path in listOf("c", "a/c", "a/b/c", "x".repeat(255), "x".repeat(256))) {
            assertThrows<MtuException.BundleRefused> {
                underRule(4, MANIFEST) { files().checkPath(path) }
            }
        }
        files().checkPath("a/b")
    }

    @Test
    fun `links and special files`() {
        write("a/b/c")
        Files.createSymbolicLink(folder.resolve("link").toPath(), folder.resolve("a").toPath())
        Files.createSymbolicLink(
            folder.resolve("nowhere").toPath(),
            folder.resolve("none").toPath(),
        )
        Files.createSymbolicLink(
            folder.resolve("a/b/._link").toPath(),
            folder.resolve("a").toPath(),
        )
        for (path in listOf("link", "link/b", "link/b/c", "nowhere")) assertEquals(
            "it goes through a link",
            refusal(path),
        )
        assertTrue(refusal("a").endsWith("is neither a plain file nor a folder"))
        assertTrue(files().exists("nowhere"))
        check(folder.resolve("a/b/._link").delete())
        check(ProcessBuilder("mkfifo", folder.resolve("a/b/pipe").path).start().waitFor() == 0)
        assertTrue(refusal("a").endsWith("is neither a plain file nor a folder"))
        assertTrue(refusal("a/b/pipe").endsWith("it is neither a plain file nor a folder"))
    }

    @Test
    fun `a file that grows while it is hashed is not read for ever`() {
        write("a", "abc")
        val files = files().apply { checkPath("a") }
        write("a", "abcd")
        assertThrows<Damaged> {
            files.checkHash(FileRecord("a", 3, BundleFiles.sha256("abc".toByteArray())))
        }
    }

    @Test
    fun `a manifest of terabytes is refused by its size`() {
        RandomAccessFile(folder.resolve(MANIFEST), "rw").use { it.setLength(1L shl 40) }
        TestBundles.assertRefused(1, folder)
    }

    @Test
    fun `a manifest that is a pipe or a folder is not opened`() {
        check(ProcessBuilder("mkfifo", folder.resolve(MANIFEST).path).start().waitFor() == 0)
        TestBundles.assertRefused(1, folder)
        check(folder.resolve(MANIFEST).delete() && folder.resolve(MANIFEST).mkdir())
        TestBundles.assertRefused(1, folder)
    }
}
