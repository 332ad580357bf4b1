package io.mtuexport.executorch

import io.mtuexport.testkit.ClassFile
import java.io.File
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/**
 * `calls.txt` lists what of ExecuTorch this module calls; a change of it is a change of what apps
 * need.
 */
class CallsTest {
    private val list = File(System.getProperty("mtu.runtime"), "android/executorch/calls.txt")
    private val classes =
        File(ExecuTorchRuntime::class.java.protectionDomain.codeSource.location.toURI())

    @Test
    fun `the compiled module calls what the list has`() {
        val calls =
            classes
                .walk()
                .filter { it.extension == "class" }
                .flatMap { ClassFile(it).members }
                .filter { it.startsWith("org/pytorch/") }
                .toSortedSet()
        assertEquals(
            list.readLines().filter { it.isNotBlank() && !it.startsWith("#") },
            calls.toList(),
        )
    }

    @Test
    fun `classes of executorch stay out of the runtime's own class`() {
        val own =
            ClassFile(File(classes, "io/mtuexport/executorch/ExecuTorchRuntime.class")).members
        assertTrue(own.isNotEmpty())
        assertEquals(emptyList<String>(), own.filter { it.startsWith("org/pytorch/") })
    }
}
