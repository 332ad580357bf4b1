package io.mtuexport.core

import java.io.File
import java.io.FileInputStream
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.nio.file.attribute.BasicFileAttributes
import java.security.MessageDigest

/** A plain file that counts in the hash of an entry of the manifest. */
internal class CountedFile(
    /** Path within the entry's folder; empty where the entry is a file. */
    val name: String,
    /** Path within the bundle. */
    val path: String,
    val size: Long,
)

/** The files of a bundle's folder. Links are seen as links everywhere below it. */
internal class BundleFiles(private val folder: File) {
    private val counted = HashMap<String, List<CountedFile>>()

    fun file(path: String): File = File(folder, path)

    /** Whether there is something of this path: a file, a folder, a link to nowhere. */
    fun exists(path: String): Boolean = Files.exists(file(path).toPath(), LinkOption.NOFOLLOW_LINKS)

    fun isPlainFile(path: String): Boolean =
        Files.isRegularFile(file(path).toPath(), LinkOption.NOFOLLOW_LINKS)

    /** The bytes of the manifest: a plain file of at most [most] bytes. */
    fun manifest(most: Int): ByteArray {
        refuseUnless(folder.isDirectory && exists(MANIFEST), MANIFEST) { "it is missing" }
        refuseUnless(isPlainFile(MANIFEST), MANIFEST) { "it is a link or no plain file" }
        RandomAccessFile(file(MANIFEST), "r").use { opened ->
            return opened.readWhole(most, MANIFEST)
        }
    }

    /** Rule 4, of a `path` of `parts` or `files`; lists its files for [counted]. */
    fun checkPath(path: String) {
        val where = "path ${quoted(path)}"
        refuseUnless(path.codePointCount(0, path.length) <= LONGEST_PATH, where) {
            "more than $LONGEST_PATH characters"
        }
        val names = path.split('/')
        val isPlain = path.none { it in "\\:\u0000" } && names.none { it in listOf("", ".", "..") }
        refuseUnless(isPlain, where) { "it leaves the bundle or is not plain" }
        refuseUnless(names.none(::isMacos), where) { "it is a file of macOS" }
        var inner = folder.toPath()
        for (name in names) {
            inner = inner.resolve(name)
            val attributes = attributes(inner)
                ?: throw Damaged(where, "it is missing from the bundle")
            refuseUnless(!attributes.isSymbolicLink, where) { "it goes through a link" }
        }
        counted[path] = list(path, inner)
    }

    /** The files that count in an entry's size and hash, in the order of the hash. */
    fun counted(path: String): List<CountedFile> = counted.getValue(path)

    /** Rule 6, the size. */
    fun checkSize(record: FileRecord) {
        val size = counted(record.path).fold(0L) { sum, file -> sum + file.size }
        refuseUnless(size == record.bytes, record.path) {
            "$size bytes, the manifest says ${record.bytes}"
        }
    }

    /** Rule 6, the hash. */
    fun checkHash(record: FileRecord) {
        val files = counted(record.path)
        val alone = files.singleOrNull()?.takeIf { it.name.isEmpty() }
        val hash = if (alone != null) {
            sha256(alone)
        } else {
            val text = MessageDigest.getInstance(SHA256)
            for (file in files) text.update("${sha256(file)}  ${file.name}\n".toByteArray())
            hex(text.digest())
        }
        refuseUnless(hash == record.sha256, record.path) { "its sha256 is not the manifest's" }
    }

    private fun sha256(counted: CountedFile): String {
        val digest = MessageDigest.getInstance(SHA256)
        val piece = ByteArray(PIECE)
        var left = counted.size
        FileInputStream(file(counted.path)).use { stream ->
            while (true) {
                val length = stream.read(piece)
                if (length < 0) break
                left -= length
                refuseUnless(left >= 0, counted.path) { "it has become longer" }
                if (Thread.interrupted()) throw InterruptedException("while a bundle was read")
                digest.update(piece, 0, length)
            }
        }
        return hex(digest.digest())
    }

    private fun list(path: String, root: Path): List<CountedFile> {
        val own = attributesOf(root)
        if (own.isRegularFile) return listOf(CountedFile("", path, own.size()))
        refuseUnless(own.isDirectory, path) { "it is neither a plain file nor a folder" }
        val files = ArrayList<CountedFile>()
        val folders = arrayListOf("" to root)
        while (folders.isNotEmpty()) {
            val (outer, directory) = folders.removeAt(folders.size - 1)
            Files.newDirectoryStream(directory).use { entries ->
                for (entry in entries) {
                    val last = entry.fileName.toString()
                    val name = outer + last
                    val attributes = attributes(entry)
                    val isFile = attributes?.isRegularFile == true
                    refuseUnless(isFile || attributes?.isDirectory == true, path) {
                        "${quoted(name)} is neither a plain file nor a folder"
                    }
                    if (!isFile) {
                        folders += "$name/" to entry
                    } else if (!isMacos(last)) {
                        files += CountedFile(name, "$path/$name", attributes!!.size())
                    }
                }
            }
        }
        return files.sortedWith { one, other -> compareCodePoints(one.name, other.name) }
    }

    companion object {
        private const val LONGEST_PATH = 255
        private const val PIECE = 1 shl 18
        private const val SHA256 = "SHA-256"

        /** The hash of bytes in small hexadecimal letters. */
        fun sha256(bytes: ByteArray): String = hex(MessageDigest.getInstance(SHA256).digest(bytes))

        private fun hex(bytes: ByteArray): String = buildString(2 * bytes.size) {
            for (byte in bytes.map { it.toInt() }) {
                append(HEX[byte shr 4 and 15]).append(HEX[byte and 15])
            }
        }

        private fun attributes(path: Path): BasicFileAttributes? =
            try {
                attributesOf(path)
            } catch (_: NoSuchFileException) {
                null
            }

        /** Whether macOS leaves files of this name in folders. */
        private fun isMacos(name: String) = name == ".DS_Store" || name.startsWith("._")

        private const val HEX = "0123456789abcdef"
    }
}

/** Reads from a place up to the end of an array or of the file; the number of bytes. */
internal fun RandomAccessFile.readAt(place: Long, into: ByteArray, most: Int = into.size): Int {
    seek(place)
    var done = 0
    while (done < most) {
        val length = read(into, done, most - done)
        if (length < 0) break
        done += length
    }
    return done
}

/** All bytes of a file of at most [most] bytes; [what] names it. */
internal fun RandomAccessFile.readWhole(most: Int, what: String): ByteArray {
    val size = length()
    refuseUnless(size <= most, what) { "$size bytes, at most $most" }
    val bytes = ByteArray(size.toInt())
    refuseUnless(readAt(0, bytes) == bytes.size, what) { "it has become shorter" }
    return bytes
}

/** What is at a path itself, which may be a link. */
internal fun attributesOf(path: Path): BasicFileAttributes =
    Files.readAttributes(path, BasicFileAttributes::class.java, LinkOption.NOFOLLOW_LINKS)

/** The order of code points, which is not that of UTF-16 units. */
internal fun compareCodePoints(one: String, other: String): Int {
    val shorter = minOf(one.length, other.length)
    val at = (0 until shorter).firstOrNull { one[it] != other[it] }
        ?: return one.length - other.length
    // Pairs of surrogates come after all that one unit holds; within a pair the first unit decides.
    val (left, right) = one[at] to other[at]
    return if (left.isSurrogate() != right.isSurrogate()) {
        if (left.isSurrogate()) 1 else -1
    } else {
        left.compareTo(right)
    }
}
