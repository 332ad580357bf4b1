package io.mtuexport.core

import java.io.File
import java.nio.file.Files
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.assertThrows

/** The bundle of `runtime/testdata`, copies of it, and edits of copies as its page says. */
internal object TestBundles {
    val testdata: File = File(checkNotNull(System.getProperty("mtu.runtime")), "testdata")
    val original: File = testdata.resolve("edit-onnx-int8")

    /** A JSON file of testdata. */
    fun read(name: String): Any? = Json.parse(testdata.resolve(name).readBytes(), name)

    /** A copy of the bundle in an empty folder. */
    fun copy(into: File): File = into.resolve(original.name).also { original.copyRecursively(it) }

    fun manifest(bundle: File): MutableMap<String, Any?> =
        mutable(Json.parse(bundle.resolve(MANIFEST).readBytes(), MANIFEST)).members()

    fun writeManifest(bundle: File, manifest: Any?) =
        bundle.resolve(MANIFEST).writeText(Json.write(manifest))

    /** Changes the manifest of a copy. */
    fun change(bundle: File, change: (MutableMap<String, Any?>) -> Unit) =
        writeManifest(bundle, manifest(bundle).also(change))

    /** Makes one edit of `hostile.json`. */
    fun edit(bundle: File, edit: JsonObject) {
        val path = edit["path"]
        when (edit.text("op")) {
            "set" -> change(bundle) { set(it, path as List<*>, edit["value"]) }
            "delete" -> change(bundle) { delete(it, path as List<*>) }
            "seal" -> change(bundle) { seal(bundle, it, path as String) }
            "text" -> replaceText(bundle.resolve(MANIFEST), edit.text("old"), edit.text("new"))
            "write" -> bundle.resolve(path as String).writeBytes(bytes(edit.text("hex")))
            "bytes" ->
                changeBytes(bundle, path) { old ->
                    bytes(edit.text("hex")).copyInto(old, edit.int("at"))
                }
            "flip" ->
                changeBytes(bundle, path) { old ->
                    val at = edit.int("at")
                    old[at] = (old[at].toInt() xor (1 shl edit.int("bit"))).toByte()
                    old
                }
            "truncate" -> changeBytes(bundle, path) { it.copyOf(edit.int("bytes")) }
            "pad" ->
                changeBytes(bundle, path) { old ->
                    old + ByteArray(edit.int("bytes") - old.size) { ' '.code.toByte() }
                }
            "rename" ->
                check(bundle.resolve(path as String).renameTo(bundle.resolve(edit.text("to"))))
            "link" ->
                Files.createSymbolicLink(
                    bundle.resolve(path as String).toPath(),
                    File(edit.text("to")).toPath(),
                )
            else -> error("unknown edit $edit")
        }
    }

    /** Puts size and hash of an entry into the manifest. */
    fun seal(bundle: File, manifest: MutableMap<String, Any?>, path: String) {
        val records = (manifest["parts"] as List<*>) + (manifest["files"] as List<*>)
        val record = records.map { it.members() }.single { it["path"] == path }
        val files = BundleFiles(bundle).also { it.checkPath(path) }.counted(path)
        val hashes =
            files.map { it.name to BundleFiles.sha256(bundle.resolve(it.path).readBytes()) }
        val text = hashes.joinToString("") { (name, hash) -> "$hash  $name\n" }
        record["bytes"] = files.sumOf { it.size }.toDouble()
        record["sha256"] =
            if (hashes[0].first.isEmpty()) hashes[0].second
            else BundleFiles.sha256(text.toByteArray())
    }

    /** Bytes that this process has read, as Linux counts them; elsewhere the test is skipped. */
    fun bytesRead(): Long {
        val counts = File("/proc/self/io")
        assumeTrue(counts.exists(), "reads are counted on Linux alone")
        return counts.readLines().first { it.startsWith("rchar") }.substringAfter(": ").toLong()
    }

    /** That opening gives this rule's refusal. */
    fun assertRefused(
        rule: Int,
        bundle: File,
        trust: Trust = Trust.Full(),
    ): MtuException.BundleRefused {
        val refusal = assertThrows<MtuException.BundleRefused> { ModelBundle.open(bundle, trust) }
        assertEquals(rule, refusal.rule, refusal.message)
        return refusal
    }

    fun mutable(value: Any?): Any? =
        when (value) {
            is Map<*, *> ->
                value.entries.associateTo(LinkedHashMap()) { it.key to mutable(it.value) }
            is List<*> -> value.mapTo(ArrayList()) { mutable(it) }
            else -> value
        }

    @Suppress("UNCHECKED_CAST")
    fun Any?.members(): MutableMap<String, Any?> = this as MutableMap<String, Any?>

    @Suppress("UNCHECKED_CAST") fun Any?.items(): MutableList<Any?> = this as MutableList<Any?>

    private fun at(manifest: Any?, path: List<*>): Any? =
        path.fold(manifest) { node, step ->
            if (step is Double) node.items()[step.toInt()] else node.members()[step as String]
        }

    fun set(manifest: Any?, path: List<*>, value: Any?) {
        val node = at(manifest, path.dropLast(1))
        when (val last = path.last()) {
            is Double ->
                if (last.toInt() == node.items().size) node.items() += mutable(value)
                else node.items()[last.toInt()] = mutable(value)
            else -> node.members()[last as String] = mutable(value)
        }
    }

    private fun delete(manifest: Any?, path: List<*>) {
        val node = at(manifest, path.dropLast(1))
        when (val last = path.last()) {
            is Double -> node.items().removeAt(last.toInt())
            else -> node.members().remove(last as String)
        }
    }

    private fun replaceText(file: File, old: String, new: String) {
        val pieces = file.readText().split(old)
        check(pieces.size == 2) { "$old is there ${pieces.size - 1} times" }
        file.writeText(pieces.joinToString(new))
    }

    private fun changeBytes(bundle: File, path: Any?, change: (ByteArray) -> ByteArray) {
        val file = bundle.resolve(path as String)
        file.writeBytes(change(file.readBytes()))
    }

    fun bytes(hex: String): ByteArray =
        ByteArray(hex.length / 2) { hex.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
