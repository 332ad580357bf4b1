package io.mtuexport.core

// The numbered rules of the contract that the manifest and the list of files decide: 5, 7, 8, 9
// and 13. Each function throws Damaged, which says where.

private const val LARGEST_PART = 64_000_000_000
private const val LARGEST_GOLDENS = 4_000_000_000
private const val LARGEST_FILE = 256_000_000L

/** All that has a size and a hash. */
internal val Manifest.records: List<FileRecord> get() = parts.map { it.file } + files

/** Rule 5. */
internal fun checkDistinctPaths(manifest: Manifest) {
    val paths = manifest.records.map { it.path }
    requireDistinct(paths, "$MANIFEST: path")
    requireDistinct(manifest.tokenizers.map { it.path }, "$MANIFEST: tokenizer")
    val all = paths.toSet()
    for (path in paths) {
        val outer =
            path.indices.filter { path[it] == '/' }.map { path.take(it) }.firstOrNull { it in all }
        refuseUnless(outer == null, "$MANIFEST: path ${quoted(path)}") {
            "it lies within ${quoted(outer)}"
        }
    }
}

/** Rule 7. */
internal fun checkOpened(manifest: Manifest, files: BundleFiles) {
    val listed = manifest.files.map { it.path }.toSet()
    val opened = manifest.tokenizers.map { it.path } + manifest.parts.flatMap { it.data } +
        listOf(CONSTANTS, GOLDENS).filter(files::exists)
    for (path in opened) {
        refuseUnless(path in listed, "$MANIFEST: files") { "no entry for ${quoted(path)}" }
    }
}

/** Rule 8, but for the inside of ONNX files. */
internal fun checkNames(manifest: Manifest, files: BundleFiles) {
    requireDistinct(manifest.parts.map { it.name }, "$MANIFEST: part")
    requireDistinct(manifest.tasks.map { it.name }, "$MANIFEST: task")
    val tables = manifest.schedules.map { "${it.steps} steps, strength ${it.strength}" }
    requireDistinct(tables, "$MANIFEST: table")
    for (task in manifest.tasks) {
        requireDistinct(task.flow.calls.map { it.id }, "$MANIFEST: task ${task.name}: call")
    }
    for (part in manifest.parts) {
        checkPartNames(manifest, part)
        if (manifest.target != Target.ONNX) continue
        for (entry in part.entries.values.toSet()) {
            requireFile(files, part, entry, "$MANIFEST: part ${part.name}: entries")
        }
    }
}

/** The end of rule 8, of an entry and of each location of external data. */
internal fun requireFile(files: BundleFiles, part: Part, name: String, where: String) {
    val exists = isPlainName(name) && files.isPlainFile("${part.file.path}/$name")
    refuseUnless(exists, where) { "${quoted(name)} is no file of ${part.file.path}" }
}

private fun checkPartNames(manifest: Manifest, part: Part) {
    val where = "$MANIFEST: part ${part.name}"
    refuseUnless(part.name != "pipeline", where) { "no part is called so" }
    val callers = manifest.tasks.filter { task -> task.flow.calls.any { it.part == part.name } }
    val users = callers.map { it.name }.toSet()
    refuseUnless(users.isNotEmpty() && part.entries.keys == users, "$where: entries") {
        "they are not those of the tasks that call it"
    }
    val others = mapOf(
        "task_inputs" to part.taskInputs.keys,
        "cost.task_weight_bytes" to part.taskWeightBytes.keys,
        "witness" to part.witness,
    )
    for ((key, tasks) in others) {
        val foreign = tasks.firstOrNull { it !in users }
        refuseUnless(foreign == null, "$where: $key") {
            "${quoted(foreign)} is no task of its entries"
        }
    }
    val names = part.inputs.map { it.name }
    requireDistinct(names, "$where: input")
    requireDistinct(part.outputs.map { it.name }, "$where: output")
    for ((task, inputs) in part.taskInputs) {
        refuseUnless(inputs.map { it.name } == names, "$where: task_inputs.$task") {
            "the names are not those of inputs"
        }
    }
}

/** Rule 9. */
internal fun checkTables(manifest: Manifest) {
    manifest.schedules.forEachIndexed { index, table ->
        val where = "$MANIFEST: loop.schedules[$index]"
        table.passes.forEachIndexed { i, pass ->
            val back = pass.x.drop(i + 1) + pass.m.drop(i + 1)
            refuseUnless(back.all { it == 0.0 }, where) { "pass $i looks back before the start" }
            refuseUnless("timestep" in pass.scalars, where) {
                "pass $i has no timestep, or it is no number"
            }
        }
        refuseUnless(table.strength != null || table.startPicture == 0.0, where) {
            "start.picture needs a strength"
        }
    }
}

/** Rule 13, but for the inside of ONNX files. */
internal fun checkLimits(manifest: Manifest) {
    for (part in manifest.parts) requireAtMost(part.file, LARGEST_PART)
    for (file in manifest.files) {
        requireAtMost(file, if (file.path == GOLDENS) LARGEST_GOLDENS else LARGEST_FILE)
    }
}

private fun requireAtMost(record: FileRecord, most: Long) {
    refuseUnless(record.bytes <= most, "$MANIFEST: ${record.path}") {
        "${record.bytes} bytes, at most $most"
    }
}

private fun requireDistinct(names: List<String>, what: String) {
    val seen = HashSet<String>()
    for (name in names) {
        refuseUnless(seen.add(name), "$what ${quoted(name)}") { "it is there twice" }
    }
}
