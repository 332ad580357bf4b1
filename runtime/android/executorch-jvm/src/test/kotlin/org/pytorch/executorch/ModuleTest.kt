package org.pytorch.executorch

import java.io.File
import java.nio.file.Path
import java.util.concurrent.CountDownLatch
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/**
 * The largest file of the bundle that `-Dmtu.pte=FOLDER` names, through the library that
 * `-Dmtu.executorch=FOLDER` names. Without them nothing runs here.
 */
class ModuleTest {
    private lateinit var file: File

    @BeforeEach
    fun needed() {
        val place = System.getProperty("mtu.pte").orEmpty()
        assumeTrue(place.isNotEmpty(), "no bundle is named: -Dmtu.pte")
        assumeTrue(
            !System.getProperty("mtu.executorch").isNullOrEmpty(),
            "no library is named: -Dmtu.executorch",
        )
        file = File(place).walk().filter { it.extension == "pte" }.maxByOrNull(File::length)!!
    }

    private fun <T> opened(mode: Int = Module.LOAD_MODE_MMAP, use: (Module) -> T): T =
        Module.load(file.path, mode).use(use)

    /** Names of methods that take inputs: those of tasks. */
    private fun Module.tasks() = getMethods().filterNot { it.startsWith("_") }.sorted()

    @Test
    fun `methods and their backends are named`(): Unit = opened { module ->
        assertTrue(module.tasks().isNotEmpty())
        for (name in module.tasks()) {
            val metadata = module.getMethodMetadata(name)
            assertEquals(name, metadata.name)
            assertEquals(listOf("XnnpackBackend"), metadata.backends.toList())
        }
        val error =
            assertThrows(IllegalArgumentException::class.java) {
                module.getMethodMetadata("nothing")
            }
        assertTrue(module.tasks().first() in error.message!!, error.message)
    }

    @Test
    fun `every mode gives the same outputs`() {
        val outputs =
            (Module.LOAD_MODE_FILE..Module.LOAD_MODE_MMAP_USE_MLOCK_IGNORE_ERRORS)
                .filter {
                    it != Module.LOAD_MODE_MMAP_USE_MLOCK
                } // the system may refuse to lock memory
                .map { mode ->
                    opened(mode) {
                        it.execute(it.tasks().first()).map { value ->
                            value.toTensor().dataAsFloatArray
                        }
                    }
                }
        for (other in outputs.drop(1)) for ((first, second) in
            outputs[0].zip(other)) assertArrayEquals(first, second)
        assertTrue(outputs[0][0].all { it == it } && outputs[0][0].any { it != 0f })
    }

    @Test
    fun `outputs are borrowed until the next call`(): Unit = opened { module ->
        val name = module.tasks().first()
        val first = module.execute(name)[0].toTensor()
        val copy = first.dataAsFloatArray
        val second = module.execute(name)[0].toTensor()
        assertThrows(IllegalStateException::class.java) { first.dataAsFloatArray }
        assertArrayEquals(copy, second.dataAsFloatArray)
        module.destroy()
        assertThrows(IllegalStateException::class.java) { second.dataAsFloatArray }
    }

    @Test
    fun `inputs that do not fit are refused, and the module goes on`(): Unit = opened { module ->
        val name = module.tasks().first()
        val expected = module.execute(name)[0].toTensor().dataAsFloatArray
        val one = Tensor.fromBlob(floatArrayOf(1f), longArrayOf(1))
        val wanted = Native.inputs(openedHandle(module), name.toByteArray())
        val good = wanted.map { form -> value(form) { it } }
        for (bad in
            listOf(
                good.drop(1),
                good + good[0],
                listOf(EValue.from(one)) + good.drop(1),
                listOf(EValue.from(1L)) + good.drop(1),
                listOf(EValue.from("text")) + good.drop(1),
                listOf(EValue.optionalNone()) + good.drop(1),
                listOf(value(wanted[0]) { it + 1 }) + good.drop(1),
            )) {
            val error =
                assertThrows(ExecutorchRuntimeException::class.java) {
                    module.execute(name, *bad.toTypedArray())
                }
            assertTrue(error.errorCode != 0, error.message)
        }
        assertArrayEquals(
            expected,
            module.execute(name, *good.toTypedArray())[0].toTensor().dataAsFloatArray,
        )
    }

    private fun openedHandle(module: Module): Long =
        Module::class.java.getDeclaredField("handle").apply { isAccessible = true }.getLong(module)

    /** A value of ones for an input, of another first extent where [change] says so. */
    private fun value(form: LongArray, change: (Long) -> Long): EValue {
        val shape = form.copyOfRange(2, form.size).also { it[0] = change(it[0]) }
        val count = shape.fold(1L) { product, extent -> product * extent }.toInt()
        return EValue.from(
            if (form[1].toInt() == DType.FLOAT.jniCode)
                Tensor.fromBlob(FloatArray(count) { 1f }, shape)
            else Tensor.fromBlob(IntArray(count) { 1 }, shape)
        )
    }

    @Test
    fun `an unknown method is an invalid argument`(): Unit = opened { module ->
        for (call in
            listOf<() -> Unit>(
                { module.loadMethod("nothing") },
                { module.execute("nothing") },
                { module.forward2() },
            )) {
            val error = assertThrows(ExecutorchRuntimeException::class.java) { call() }
            assertEquals(ExecutorchRuntimeException.INVALID_ARGUMENT, error.errorCode)
        }
    }

    private fun Module.forward2() {
        if ("forward" in getMethods()) execute("forward2") else forward()
    }

    @Test
    fun `paths and modes that are not legal`(@TempDir folder: Path) {
        for (path in
            listOf(null, "", File(folder.toFile(), "nothing.pte").path, folder.toString())) {
            assertThrows(IllegalArgumentException::class.java) { Module.load(path) }
        }
        for (mode in listOf(-1, 4)) assertThrows(IllegalArgumentException::class.java) {
            Module.load(file.path, mode)
        }
        assertThrows(IllegalArgumentException::class.java) {
            Module.load(file.path, Module.LOAD_MODE_MMAP, -1)
        }
    }

    @Test
    fun `damaged files are refused with a code`(@TempDir folder: Path) {
        val whole = file.readBytes()
        val copies =
            listOf(0, 1, 8, 64, 1000, whole.size / 3, whole.size - 1).map { whole.copyOf(it) } +
                listOf(0, 4).map { at ->
                    whole.clone().also { it[at] = (it[at].toInt() xor 0x55).toByte() }
                }
        for ((index, bytes) in copies.withIndex()) {
            val copy = File(folder.toFile(), "$index.pte").apply { writeBytes(bytes) }
            for (mode in listOf(Module.LOAD_MODE_FILE, Module.LOAD_MODE_MMAP)) {
                val error =
                    assertThrows(
                        ExecutorchRuntimeException::class.java,
                        { openAll(copy, mode) },
                        "$index",
                    )
                assertTrue(error.errorCode != 0)
            }
        }
    }

    private fun openAll(copy: File, mode: Int): Unit =
        Module.load(copy.path, mode).use { module -> module.tasks().forEach(module::loadMethod) }

    @Test
    fun `nothing is called after the end`() {
        val module = Module.load(file.path, Module.LOAD_MODE_MMAP)
        repeat(2) { module.destroy() }
        for (call in
            listOf<() -> Any>(
                { module.getMethods() },
                { module.execute("a") },
                { module.loadMethod("a") },
            )) {
            val error = assertThrows(IllegalStateException::class.java) { call() }
            assertEquals("the module has been destroyed", error.message)
        }
    }

    @Test
    fun `it is not destroyed while another thread is within a call`(): Unit = opened { module ->
        val field = Module::class.java.getDeclaredField("lock").apply { isAccessible = true }
        val lock = field.get(module) as ReentrantLock
        val inside = CountDownLatch(1)
        val over = CountDownLatch(1)
        val caller = Thread {
            lock.withLock {
                inside.countDown()
                over.await()
            }
        }
        caller.start()
        inside.await()
        val error = assertThrows(IllegalStateException::class.java) { module.destroy() }
        assertTrue("while a method executes" in error.message!!, error.message)
        over.countDown()
        caller.join()
        assertTrue(module.tasks().isNotEmpty())
    }
}
