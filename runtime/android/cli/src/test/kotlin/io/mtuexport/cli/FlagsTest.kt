package io.mtuexport.cli

import java.io.File
import java.nio.file.Files
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

internal class FlagsTest {
    private val steps = Flag("--steps", "", "N")
    private val force = Flag("--force", "")
    private val output = Flag(Command.OUTPUT, "", "FILE")
    private val all = listOf(steps, force, output, Command.VERBOSE)

    private fun words(vararg line: String) = Words.of(line.toList(), all)

    private fun refused(vararg line: String): String? =
        assertThrows(Refusal::class.java) { words(*line) }.message

    @Test
    fun `flags and other words are mixed, the last value counts`() {
        val words = words("a", "--steps", "4", "--force", "-o", "x", "b", "--steps=8", "--", "-o")
        assertEquals(listOf("a", "b", "-o"), words.free)
        assertEquals(8L, words.whole(steps))
        assertEquals(listOf("4", "8"), words.all(steps))
        assertEquals("x", words.text(output))
        assertTrue(words.has(force))
        assertEquals("y=z", words("-oy=z").text(output))
        assertEquals("--force", words("-o", "--force").text(output))
        assertFalse(words("-").has(force))
        assertEquals(listOf("-"), words("-").free)
        for (line in listOf(words("-vo", "x"), words("-vox"), words("-vvo", "x"))) {
            assertTrue(line.has(Command.VERBOSE))
            assertEquals("x", line.text(output))
        }
    }

    @Test
    fun `what is no flag is refused`() {
        assertEquals("No such option: --step", refused("--step", "4"))
        assertEquals("No such option: -x", refused("-x"))
        assertEquals("No such option: -x", refused("-vx"))
        assertEquals("Option '-o' requires an argument.", refused("-vo"))
        assertEquals("Option '--steps' requires an argument.", refused("--steps"))
        assertEquals("Option '--force' does not take a value.", refused("--force=1"))
    }

    @Test
    fun `numbers are those of Python`() {
        assertEquals(0.5, decimal(" .5 "))
        assertEquals(-100.0, decimal("-1e2"))
        assertTrue(decimal("nan")!!.isNaN())
        assertEquals(Double.NEGATIVE_INFINITY, decimal("-Infinity"))
        for (text in listOf("", "x", "1d", "0x1p3", "--1", "1e", "+-inf")) assertNull(decimal(text))
        assertEquals(10.5, decimal("1_0.5"))
        assertNull(decimal("_1"))
        for (text in listOf("4", " +4 ", "4.0", "4.", "0_4")) assertEquals(
            4L,
            words("--steps", text).whole(steps),
            text,
        )
        for (text in listOf("", "4.5", "4_", "\u0664", "1e1", "0x4", "4.0_0")) assertThrows(
            Refusal::class.java,
            { words("--steps", text).whole(steps) },
            text,
        )
        assertEquals("1e-05", brief(0.00001))
        assertEquals("1e+06", brief(1_000_000.0))
        assertEquals("0.75", brief(0.75))
        assertEquals("50", brief(50.0))
    }

    @Test
    fun `texts are quoted as Python quotes them`() {
        assertEquals("'a'", quoted("a"))
        assertEquals("\"it's\"", quoted("it's"))
        assertEquals("'\\n\\\\\\x1b'", quoted("\n\\\u001B"))
        assertEquals("a?b", plain("a\u001Bb"))
    }

    @Test
    fun `words are read as typed where the locale is bare`(@TempDir folder: File) {
        val encoding = System.getProperty("sun.jnu.encoding")
        try {
            System.setProperty("sun.jnu.encoding", "ANSI_X3.4-1968")
            val typed = File(folder, "cmdline")
            typed.writeText("java\u0000-jar\u0000x.jar\u0000run\u0000caf\u00E9\u0000")
            assertEquals(listOf("run", "caf\u00E9"), asTyped(listOf("run", "caf??"), typed))
            assertEquals(listOf("else", "caf??"), asTyped(listOf("else", "caf??"), typed))
            assertEquals(listOf("run"), asTyped(listOf("run"), File(folder, "none")))
        } finally {
            System.setProperty("sun.jnu.encoding", encoding)
        }
    }

    @Test
    fun `a tree goes, and what its links lead to stays`(@TempDir folder: File) {
        val kept = File(folder, "kept").also { it.mkdir() }
        File(kept, "file").writeText("x")
        val tree = File(folder, "tree").also { File(it, "a/b").mkdirs() }
        Files.createSymbolicLink(File(tree, "a/link").toPath(), kept.toPath())
        removeTree(tree)
        assertFalse(tree.exists())
        assertTrue(File(kept, "file").isFile)
    }

    @Test
    fun `what is begun is taken back, the last first, whatever fails`() {
        val taken = ArrayList<String>()
        for (name in listOf("a", "b", "c", "d")) Drafts.add(name) {
            if (name == "c") error("on purpose")
            taken += name
        }
        Drafts.remove("b")
        Drafts.delete()
        listOf("a", "c", "d").forEach(Drafts::remove)
        assertEquals(listOf("d", "a"), taken)
    }

    @Test
    fun `a file is written whole or not at all`(@TempDir folder: File) {
        val target = File(folder, "out.png").also { it.writeText("old") }
        assertThrows(IllegalStateException::class.java) {
            writeWhole(target) {
                it.writeText("half")
                error("stopped")
            }
        }
        assertEquals("old", target.readText())
        writeWhole(target) { it.writeText("new") }
        assertEquals("new", target.readText())
        assertEquals(listOf("out.png"), folder.list()!!.toList())
    }
}
