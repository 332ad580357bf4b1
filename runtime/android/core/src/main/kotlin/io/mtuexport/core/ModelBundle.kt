package io.mtuexport.core

import java.io.File
import java.io.IOException

internal const val MANIFEST = "manifest.json"
internal const val GOLDENS = "goldens.safetensors"
internal const val CONSTANTS = "constants.safetensors"

/** A bundle whose files passed the rules of the contract. Immutable; holds no open file. */
public class ModelBundle internal constructor(
    internal val folder: File,
    internal val manifest: Manifest,
    /** The hash of `manifest.json`, in small hexadecimal letters. */
    public val manifestSha256: String,
    private val constants: Safetensors?,
    internal val goldens: Safetensors?,
) {
    private val tokenizers = HashMap<String, Tokenizer>()

    /** What the exporter called it. */
    public val name: String get() = manifest.name

    /** The runtime that it is for. */
    public val target: Target get() = manifest.target

    /** What it was made with: package → version. */
    public val versions: Map<String, String> get() = manifest.versions

    /** Rows of every picture that it takes and makes. */
    public val height: Int get() = manifest.height

    /** Columns of every picture that it takes and makes. */
    public val width: Int get() = manifest.width

    /** Its tasks, in the order of the manifest. */
    public val tasks: List<TaskInfo> = manifest.tasks.map { TaskInfo(manifest, it) }

    /**
     * Bytes of weights that lie in memory at once while a picture is made: a lower bound of what
     * the runtime needs. Of a task whose parts are not all there, that of the others.
     *
     * @throws MtuException.RequestRefused for a name of no task.
     */
    public fun weightBytes(task: String, memory: Memory): Long {
        val calls = task(task).flow.calls
        val parts = calls.mapNotNull { part(it.part) }.distinct()
        val ofPass =
            calls.filter { it.stage == When.PASS || it.stage == When.GUIDED }.map { it.part }
        val weights = parts.associateWith { weightBytes(it, task) }
        val (kept, others) = when (memory) {
            Memory.ALL -> return weights.values.sum()
            Memory.UNET -> parts.partition { it.kind == PartKind.DENOISER }
            Memory.LEAST -> parts.partition { it.name in ofPass }
        }
        val ofKept = kept.sumOf { weights.getValue(it) }
        val ofOthers = others.maxOfOrNull { weights.getValue(it) } ?: 0
        return if (memory == Memory.UNET) ofKept + ofOthers else maxOf(ofKept, ofOthers)
    }

    private fun weightBytes(part: Part, task: String): Long =
        part.taskWeightBytes[task]?.let { part.sharedWeightBytes + it } ?: part.weightBytes

    /** The task of this name; the only one where [name] is null. */
    internal fun task(name: String?): Task {
        val all = manifest.tasks
        val named = if (name == null) all.singleOrNull() else all.firstOrNull { it.name == name }
        if (named != null) return named
        val what = if (name == null) "name one of several tasks" else "no task ${quoted(name)}"
        throw MtuException.RequestRefused(what, all.map { it.name })
    }

    /** The part of this name; null where it was not exported. */
    internal fun part(name: String): Part? = manifest.parts.firstOrNull { it.name == name }

    /** What a runtime needs to load a part for a task that calls it. */
    internal fun load(part: Part, task: String): LoadedPart = LoadedPart(
        name = part.name,
        path = File(folder, part.file.path),
        entry = part.entries.getValue(task),
        inputs = part.inputsOf(task),
        outputs = part.outputs,
        bytes = part.file.bytes + manifest.files.filter { it.path in part.data }.sumOf { it.bytes },
        versions = manifest.versions,
    )

    /** A constant that a flow names. */
    internal fun constant(name: String): Tensor.Floats = underRule(10, CONSTANTS) {
        (constants ?: throw Damaged(CONSTANTS, "it is missing")).floats(name)
    }

    /** The tokenizer of a folder of `tokenizers`, read once. */
    internal fun tokenizer(path: String): Tokenizer = synchronized(tokenizers) {
        tokenizers.getOrPut(path) {
            val record = manifest.tokenizers.first { it.path == path }
            underRule(0, path) { Tokenizer.open(folder, record) }
        }
    }

    /** Opens bundles. */
    public companion object {
        /**
         * Reads and checks a bundle, without loading a part. Blocks: a full check reads every file.
         *
         * @param folder The folder that holds `manifest.json`.
         * @throws MtuException.BundleRefused for the first rule that it breaks, in the order of the
         *   contract: 1 to 5, 7 to 9, 11, 13, then what needs the files: 6, 8, 13, 10, 12, 10.
         * @throws MtuException.OutOfMemory where the heap cannot hold what the manifest says.
         * @throws IllegalArgumentException for a receipt inside the bundle.
         * @throws InterruptedException where the thread is interrupted while files are hashed.
         */
        @JvmStatic
        @JvmOverloads
        @Throws(MtuException::class, InterruptedException::class)
        public fun open(folder: File, trust: Trust = Trust.Full()): ModelBundle =
            try {
                BundleReader(folder, trust).read()
            } catch (error: OutOfMemoryError) {
                throw MtuException.OutOfMemory(MANIFEST, 0, error)
            }
    }
}

/** Reads one bundle by the rules of the contract, in its order. */
internal class BundleReader(private val folder: File, private val trust: Trust) {
    private val files = BundleFiles(folder)

    fun read(): ModelBundle {
        val receipt = (trust as? Trust.Receipt)?.let { Receipt(it.file, folder) }
        val bytes = underRule(1, MANIFEST) { files.manifest(LARGEST_MANIFEST) }
        val sha256 = BundleFiles.sha256(bytes)
        if (trust.manifestSha256?.equals(sha256, ignoreCase = true) == false) {
            throw MtuException.BundleRefused(0, MANIFEST, "sha256 $sha256 is not the expected one")
        }
        val manifest = ManifestReader.manifest(checkedJson(bytes))
        checkManifest(manifest)
        val isKnown = receipt?.matches(manifest, sha256, files) == true
        if (!isKnown) checkContents(manifest)
        val constants = underRule(10, CONSTANTS) { safetensors(manifest, CONSTANTS) }
        if (!isKnown) underRule(10, CONSTANTS) { constants?.run { requireFinite(names) } }
        underRule(12, MANIFEST) { manifest.tasks.forEach { checkWiring(manifest, it, constants) } }
        val goldens = underRule(10, GOLDENS) { safetensors(manifest, GOLDENS) }
        underRule(10, GOLDENS) {
            goldens?.let { checkGoldens(manifest, it, readNumbers = !isKnown) }
        }
        if (!isKnown) receipt?.write(manifest, sha256, files)
        return ModelBundle(folder, manifest, sha256, constants, goldens)
    }

    /** Rules 1 to 3. */
    private fun checkedJson(bytes: ByteArray): JsonObject {
        val json = underRule(1, MANIFEST) { Json.parseObject(bytes, MANIFEST) }
        underRule(2, MANIFEST) {
            val version = json["schema_version"]
            val isOurs = version is String && version.matches(VERSION)
            refuseUnless(isOurs, "$MANIFEST: schema_version") {
                "this reader takes 2.x, it is ${quoted(version?.toString())}"
            }
        }
        underRule(3, MANIFEST) { Schema.OF_MANIFEST.check(json, MANIFEST) }
        return json
    }

    /** Rules 4, 5, 7, 8, 9, 11, 13 and the sizes of 6: all that needs no file's content. */
    private fun checkManifest(manifest: Manifest) {
        underRule(4, MANIFEST) { manifest.records.forEach { files.checkPath(it.path) } }
        underRule(5, MANIFEST) { checkDistinctPaths(manifest) }
        underRule(7, MANIFEST) { checkOpened(manifest, files) }
        underRule(8, MANIFEST) { checkNames(manifest, files) }
        underRule(9, MANIFEST) { checkTables(manifest) }
        underRule(11, MANIFEST) { manifest.tasks.forEach { checkFlow(manifest, it) } }
        underRule(13, MANIFEST) { checkLimits(manifest) }
        underRule(6, MANIFEST) { manifest.records.forEach(files::checkSize) }
    }

    /** The hashes of rule 6, and what rules 8 and 13 say of the inside of ONNX files. */
    private fun checkContents(manifest: Manifest) {
        underRule(6, MANIFEST) { manifest.records.forEach(files::checkHash) }
        if (manifest.target == Target.ONNX) manifest.parts.forEach { checkGraphs(it, files) }
    }

    @Throws(IOException::class)
    private fun safetensors(manifest: Manifest, name: String): Safetensors? =
        if (manifest.files.any { it.path == name }) Safetensors.open(files.file(name)) else null

    private companion object {
        private const val LARGEST_MANIFEST = 4_000_000
        private val VERSION = Regex("2\\.[0-9]{1,6}")
    }
}
