package io.mtuexport.executorch

import io.mtuexport.core.LoadedPart
import io.mtuexport.core.MtuException
import io.mtuexport.core.PartRuntime
import java.io.File
import java.net.URLClassLoader
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** An app without ExecuTorch, with a part of it, or with one that is too old. */
class MissingTest {
    private fun place(type: String) = Class.forName(type).protectionDomain.codeSource.location

    /** Loads our module anew, and ExecuTorch's classes too where [has] says that there are any. */
    private inner class Loader(private val has: Boolean) :
        URLClassLoader(
            arrayOf(
                place("io.mtuexport.executorch.ExecuTorchRuntime"),
                place("org.pytorch.executorch.DType"),
            ),
            MissingTest::class.java.classLoader,
        ) {
        override fun loadClass(name: String, resolve: Boolean): Class<*> {
            if (name.startsWith("org.pytorch.") && !has) throw ClassNotFoundException(name)
            val isOwn =
                name.startsWith("org.pytorch.") || name.startsWith("io.mtuexport.executorch.")
            return if (isOwn) findLoadedClass(name) ?: findClass(name)
            else super.loadClass(name, resolve)
        }
    }

    private fun runtime(has: Boolean): PartRuntime =
        Loader(has)
            .loadClass("io.mtuexport.executorch.ExecuTorchRuntime")
            .getConstructor(Int::class.java)
            .newInstance(0) as PartRuntime

    private fun part(folder: Path) =
        LoadedPart(
            name = "unet",
            path = File(folder.toFile(), "unet.pte").apply { writeText("not a program") },
            entry = "forward",
            inputs = emptyList(),
            outputs = emptyList(),
            bytes = 13,
            versions = mapOf("executorch" to "1.5.1"),
        )

    @Test
    fun `no classes of executorch`(@TempDir folder: Path) {
        val error =
            assertThrows(MtuException.RuntimeMissing::class.java) {
                runtime(false).open(part(folder))
            }
        assertEquals("org.pytorch:executorch-android:1.5.1 or newer", error.artefact)
        assertTrue("org/pytorch/executorch" in error.message!!, error.message)
    }

    @Test
    fun `no library`(@TempDir folder: Path) {
        val before = System.getProperty("mtu.executorch")
        System.setProperty("mtu.executorch", folder.toString())
        try {
            val error =
                assertThrows(MtuException.RuntimeMissing::class.java) {
                    runtime(true).open(part(folder))
                }
            assertTrue("library" in error.message!!, error.message)
        } finally {
            if (before == null) System.clearProperty("mtu.executorch")
            else System.setProperty("mtu.executorch", before)
        }
    }

    @Test
    fun `versions are compared by major and minor`() {
        for (newer in listOf("1.6.0", "2.0.0", "1.10.0")) assertTrue(
            Modules.isNewer(newer, "1.5.1"),
            newer,
        )
        for (other in listOf("1.5.2", "1.4.0", "0.9.9", "", "one", "1", "1.x")) {
            assertTrue(!Modules.isNewer(other, "1.5.1"), other)
        }
    }

    @Test
    fun `threads are not negative`() {
        assertThrows(IllegalArgumentException::class.java) { ExecuTorchRuntime(-1) }
    }
}
