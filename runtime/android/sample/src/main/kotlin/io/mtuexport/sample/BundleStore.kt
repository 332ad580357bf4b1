package io.mtuexport.sample

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream

/**
 * Bundles in the app's own storage, a folder each. What is half copied is never listed, and a new
 * store removes it: there is one a process.
 */
internal class BundleStore(private val root: File) {
    private val drafts = File(root, ".drafts")

    init {
        root.mkdirs()
        drafts.deleteRecursively() // of a copy that was stopped with the app
    }

    /** Folders of the bundles, by name. */
    fun bundles(): List<File> =
        root.listFiles { file -> file.isDirectory && file != drafts }.orEmpty().sortedBy { it.name }

    /** A receipt of what was checked; outside the bundle, so that it belongs to this device. */
    fun receipt(bundle: File): File = File(root, "${bundle.name}.receipt")

    /** Removes a bundle. */
    fun remove(bundle: File) {
        receipt(bundle).delete()
        bundle.deleteRecursively()
    }

    /**
     * Copies a tree under a name of its own.
     *
     * @param entries Of each file its path within the tree, its bytes and what opens it.
     * @param check Looks at the copy before it counts; what it throws removes the copy.
     * @return The new folder.
     * @throws IOException Where there is no room, or a file cannot be read.
     */
    fun add(
        name: String,
        entries: List<Entry>,
        progress: (Long, Long) -> Unit,
        check: (File) -> Unit,
    ): File {
        require(entries.isNotEmpty()) { "the folder is empty" }
        val total = entries.sumOf { maxOf(0, it.bytes) }
        if (total > root.usableSpace)
            throw IOException("$total bytes do not fit into ${root.usableSpace}")
        val draft = File(drafts, "copy")
        try {
            draft.deleteRecursively()
            var copied = 0L
            for (entry in entries) {
                val target = File(draft, entry.path)
                if (!target.canonicalPath.startsWith(draft.canonicalPath + File.separator)) {
                    throw IOException("'${entry.path}' leads out of the folder")
                }
                target.parentFile?.mkdirs()
                entry.open().use { input ->
                    target.outputStream().use { copied += copy(input, it) }
                }
                progress(copied, total)
            }
            check(draft)
            val folder = free(name)
            if (!draft.renameTo(folder)) throw IOException("${folder.name} cannot be written")
            return folder
        } finally {
            draft.deleteRecursively()
        }
    }

    private fun copy(input: InputStream, output: OutputStream) = input.copyTo(output, 1 shl 16)

    private fun free(name: String): File {
        val plain =
            name
                .filter { it.isLetterOrDigit() || it in "-_. " }
                .trim(' ', '.')
                .ifEmpty { "bundle" }
                .take(80)
        return generateSequence(1) { it + 1 }
            .map { File(root, if (it == 1) plain else "$plain $it") }
            .first { !it.exists() }
    }

    /** A file of a tree. */
    class Entry(val path: String, val bytes: Long, val open: () -> InputStream)
}
