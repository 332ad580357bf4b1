package io.mtuexport.android

import io.mtuexport.testkit.ClassFile
import java.io.File
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** `core` and `onnx` run on a desktop as they are: they name no class of Android. */
class NoAndroidTest {
    /** The folder of a module's classes: beside its jar, where Maven has made one. */
    private fun place(type: String): File {
        val place = File(Class.forName(type).protectionDomain.codeSource.location.toURI())
        return if (place.isFile) place.resolveSibling("classes") else place
    }

    private fun texts(folder: File): List<String> {
        assertTrue(folder.isDirectory, "$folder")
        return folder
            .walk()
            .filter { it.extension == "class" }
            .flatMap { ClassFile(it).texts }
            .toList()
    }

    private fun ofAndroid(texts: List<String>) =
        texts.filter { it.startsWith("android/") || it.startsWith("androidx/") || "Landroid" in it }

    @Test
    fun `core and onnx name no class of Android`() {
        for (type in listOf("io.mtuexport.core.ModelBundle", "io.mtuexport.onnx.OnnxRuntime")) {
            val texts = texts(place(type))
            assertFalse(texts.isEmpty())
            assertEquals(emptyList<String>(), ofAndroid(texts), type)
        }
    }

    @Test
    fun `this module does`() {
        assertTrue(ofAndroid(texts(place("io.mtuexport.android.Pictures"))).isNotEmpty())
    }
}
