package io.mtuexport.core

import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardCopyOption.REPLACE_EXISTING
import java.nio.file.attribute.FileTime
import java.util.concurrent.TimeUnit

/**
 * The receipt of a full check: the state of every file that was read, as text. It holds as long as
 * the text that the files' present state makes is the same.
 */
internal class Receipt(
    private val file: File,
    folder: File,
    private val settledMillis: Long =
        2000, // how coarse the clocks of file systems are, FAT's the coarsest
) {
    init {
        require(!isInside(folder)) { "the receipt $file lies inside the bundle" }
    }

    private fun isInside(folder: File): Boolean =
        try {
            file.canonicalFile.startsWith(folder.canonicalFile)
        } catch (_: IOException) { // there is no such path, and nothing will be written
            false
        }

    /** The state before the check, which must be that after it. */
    private var before: String? = null

    /** Whether there is a receipt of the files as they are now. */
    fun matches(manifest: Manifest, sha256: String, files: BundleFiles): Boolean =
        try {
            val state = stateOf(manifest, sha256, files).text
            before = state
            val bytes = state.toByteArray()
            file.length() == bytes.size.toLong() &&
                file.readBytes().contentEquals(bytes)
        } catch (_: IOException) {
            false
        }

    /** Writes the receipt of a check that has ended, unless a file changed in the meantime. */
    fun write(manifest: Manifest, sha256: String, files: BundleFiles) {
        try {
            val state = stateOf(manifest, sha256, files)
            // A file that has only just changed may change again without another time.
            val isSettled = state.newestMillis < System.currentTimeMillis() - settledMillis
            if (state.text != before || !isSettled) return
            val folder = file.absoluteFile.parentFile?.toPath() ?: return
            val part = Files.createTempFile(folder, file.name, ".part")
            try {
                Files.write(part, state.text.toByteArray())
                Files.move(part, file.toPath(), ATOMIC_MOVE, REPLACE_EXISTING)
            } finally {
                Files.deleteIfExists(part)
            }
        } catch (_: IOException) {
            // The bundle is good all the same; the next time it is read whole.
        }
    }

    private class State(val text: String, val newestMillis: Long)

    private fun stateOf(manifest: Manifest, sha256: String, files: BundleFiles): State {
        var newest = Long.MIN_VALUE
        val paths =
            listOf(MANIFEST) + manifest.records.flatMap { files.counted(it.path) }.map { it.path }
        val states = paths.map { path ->
            val attributes = attributesOf(files.file(path).toPath())
            val times = listOfNotNull(attributes.lastModifiedTime(), changeTime(files.file(path)))
            newest = maxOf(newest, times.last().toMillis())
            val numbers = listOf(attributes.size()) + times.map { it.to(TimeUnit.NANOSECONDS) }
            listOf(path, attributes.fileKey()?.toString()) + numbers.map { it.toString() }
        }
        val receipt = mapOf("receipt" to VERSION, "manifest" to sha256, "files" to states)
        return State(Json.write(receipt), newest)
    }

    /** When content or attributes last changed, which no program can set; null where not told. */
    private fun changeTime(file: File): FileTime? =
        try {
            Files.getAttribute(file.toPath(), "unix:ctime", LinkOption.NOFOLLOW_LINKS) as? FileTime
        } catch (_: UnsupportedOperationException) {
            null
        } catch (_: IllegalArgumentException) {
            null
        }

    private companion object {
        /** Of the checks that a receipt stands for; greater with every version that checks more. */
        private const val VERSION = 1
    }
}
