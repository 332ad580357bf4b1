package io.mtuexport.onnx

import ai.onnxruntime.OrtEnvironment
import io.mtuexport.core.MtuException
import io.mtuexport.core.Pipeline
import java.lang.reflect.InvocationTargetException
import java.net.URLClassLoader
import kotlinx.coroutines.flow.Flow
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** An app that forgot a dependency, or whose library does not load. */
class RuntimeMissingTest {
    private val ours =
        listOf(OnnxRuntime::class, Pipeline::class, Unit::class, Flow::class).map { it.java }

    @Test
    fun `without the classes the artefact is named`() {
        val message = versionError(ours)
        assertTrue("com.microsoft.onnxruntime:onnxruntime-android" in message) { message }
        assertTrue("ClassNotFoundException: ai.onnxruntime." in message) { message }
    }

    @Test
    fun `without the native library the artefact is named`() {
        val libraries =
            listOf("onnxruntime", "onnxruntime4j_jni").map { "onnxruntime.native.$it.skip" }
        libraries.forEach { System.setProperty(it, "true") }
        try {
            repeat(2) { // the second time the class is known to be broken
                val message = versionError(ours + OrtEnvironment::class.java)
                assertTrue("com.microsoft.onnxruntime:onnxruntime-android" in message) { message }
            }
        } finally {
            libraries.forEach { System.clearProperty(it) }
        }
    }

    @Test
    fun `a library that is too old is refused`() {
        for (version in listOf("1.19.2", "1.9", "0.99.0", "nonsense", "")) {
            val error =
                assertThrows(MtuException.RuntimeMissing::class.java) {
                    OnnxRuntime.requireVersion(version)
                }
            assertTrue(version in error.message.orEmpty())
        }
        for (version in listOf("1.20.0", "1.28.0", "1.100", "2.0.0", "1.29.0-rc1")) OnnxRuntime
            .requireVersion(version)
        OnnxRuntime.requireVersion(OnnxRuntime.version)
    }

    /** What asking for the version throws where only these classes are there. */
    private fun versionError(classes: List<Class<*>>): String {
        val places = classes.map { it.protectionDomain.codeSource.location }.toTypedArray()
        URLClassLoader(places, ClassLoader.getPlatformClassLoader()).use { loader ->
            val version = loader.loadClass(OnnxRuntime::class.java.name).getMethod("getVersion")
            val error = assertThrows(InvocationTargetException::class.java) { version.invoke(null) }
            assertEquals(MtuException.RuntimeMissing::class.java.name, error.cause?.javaClass?.name)
            return error.cause?.message.orEmpty()
        }
    }
}
