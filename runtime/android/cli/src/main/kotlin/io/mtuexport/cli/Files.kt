package io.mtuexport.cli

import java.io.File
import java.io.IOException
import java.nio.file.AccessDeniedException
import java.nio.file.FileSystemException
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.NoSuchFileException
import java.nio.file.StandardCopyOption

/** Refuses, before any work, a file that exists, or a place that cannot hold one. */
internal fun requireWritable(path: File, force: Boolean) {
    val name = quotedPath(path.path)
    val longest = path.path.split('/').maxOf { it.toByteArray().size }
    if (longest > LONGEST_FILE_NAME) throw Refusal("cannot write $name: File name too long")
    if (path.isDirectory) throw Refusal("$name is a folder")
    if (!force && Files.exists(path.toPath(), LinkOption.NOFOLLOW_LINKS)) {
        throw Refusal("output ${quoted(path.path)} exists; choose another -o or pass --force")
    }
    val folder =
        generateSequence(path.absoluteFile.parentFile, File::getParentFile).first(File::exists)
    if (!folder.isDirectory) {
        throw Refusal("cannot write $name: ${quotedPath(folder.path)} is not a folder")
    }
    if (!Files.isWritable(folder.toPath()))
        throw Refusal("cannot write $name: no permission", RESOURCE)
}

/** Writes a file whole or not at all: beside it first, then by renaming. */
internal fun writeWhole(path: File, write: (File) -> Unit) {
    val target = path.absoluteFile
    try {
        Files.createDirectories(target.parentFile.toPath())
        val draft = File.createTempFile(".${target.name.take(40)}.", ".part", target.parentFile)
        try {
            Drafts.add(draft)
            write(draft)
            Files.move(draft.toPath(), target.toPath(), StandardCopyOption.REPLACE_EXISTING)
        } finally {
            draft.delete()
            Drafts.remove(draft)
        }
    } catch (error: IOException) {
        throw Refusal("cannot write ${quotedPath(path.path)}: ${reasonOf(error)}", RESOURCE, error)
    }
}

/** What an interrupted process takes back before it ends: files half written, other processes. */
internal object Drafts {
    private val undo = LinkedHashMap<Any, () -> Unit>()

    fun add(file: File): Unit = add(file) { file.delete() }

    @Synchronized
    fun add(what: Any, undo: () -> Unit) {
        this.undo[what] = undo
    }

    /** Begins what [undo] ends; an interruption comes before or after, not in between. */
    @Synchronized
    fun <T : Any> begun(begin: () -> T, undo: (T) -> Unit): T =
        begin().also { begun -> add(begun) { undo(begun) } }

    @Synchronized
    fun remove(what: Any) {
        undo -= what
    }

    /** The last comes first, then [end]. Until it returns, who adds or removes something waits. */
    @Synchronized
    fun delete(end: () -> Unit = {}) {
        for (each in undo.values.toList().asReversed()) runCatching(each)
        end()
    }
}

/**
 * Removes a folder with all that is in it; a link in it goes, and what it leads to stays.
 *
 * `File.deleteRecursively` follows links.
 */
internal fun removeTree(folder: File) {
    val paths = Files.walk(folder.toPath()).use { walk -> walk.iterator().asSequence().toList() }
    paths.asReversed().forEach(Files::delete)
}

/** What an I/O error says, without the path that it repeats. */
internal fun reasonOf(error: IOException): String {
    val text =
        when (error) {
            is NoSuchFileException -> "No such file or directory"
            is AccessDeniedException -> "Permission denied"
            is FileSystemException -> error.reason ?: error.message.orEmpty()
            else -> error.message.orEmpty()
        }
    return text.substringAfterLast('(').removeSuffix(")").ifEmpty { error.javaClass.simpleName }
}

private const val LONGEST_FILE_NAME = 255
