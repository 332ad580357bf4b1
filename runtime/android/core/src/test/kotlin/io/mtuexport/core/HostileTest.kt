package io.mtuexport.core

import java.io.File
import java.nio.file.Files
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** Every case of `hostile.json`: the rule that refuses it, and no other. */
internal class HostileTest {
    private val cases = (TestBundles.read("hostile.json") as List<*>).map { it.asObject() }

    @TestFactory
    fun `refused by the rule that it breaks`(): List<DynamicTest> {
        assertTrue(cases.map { it.int("rule") }.containsAll((0..13).toList()))
        return cases.map { case ->
            dynamicTest("${case.int("rule")}: ${case.text("name")}") {
                inFolder { folder ->
                    val bundle = TestBundles.copy(folder)
                    case.members("edits").forEach { TestBundles.edit(bundle, it) }
                    val rule = case.int("rule")
                    if (rule > 0) {
                        TestBundles.assertRefused(rule, bundle)
                    } else {
                        assertEquals(listOf("edit"), ModelBundle.open(bundle).tasks.map { it.name })
                    }
                }
            }
        }
    }

    private fun inFolder(test: (File) -> Unit) {
        val folder = Files.createTempDirectory("hostile").toFile()
        try {
            test(folder)
        } finally {
            folder.deleteRecursively()
        }
    }
}
