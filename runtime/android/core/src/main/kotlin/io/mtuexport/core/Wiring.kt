package io.mtuexport.core

// Rule 12: shapes and types of a flow fit, decided from the manifest and the constants' header.

private const val LARGEST_BATCH = 64
/** Ids of a prompt that a part takes. */
internal val PROMPT_LENGTHS: IntRange = 3..1024

/** [1, C, h, w]; null where there is no latent, or its factor does not divide the picture. */
internal fun latentShapeOrNull(manifest: Manifest): IntArray? {
    val latent = manifest.latent ?: return null
    if (manifest.height % latent.factor != 0 || manifest.width % latent.factor != 0) return null
    val (rows, columns) = manifest.height / latent.factor to manifest.width / latent.factor
    return intArrayOf(1, latent.channels, rows, columns)
}

/** [1, C, h, w]. */
internal fun latentShape(manifest: Manifest): IntArray =
    latentShapeOrNull(manifest)
        ?: throw Damaged("$MANIFEST: latent", "it is missing, or does not fit the picture")

/** [1, 3 or 1, H, W] of a picture of the request. */
internal fun pictureShape(manifest: Manifest, picture: PictureInput): IntArray {
    val channels = if (picture.kind == PictureKind.PICTURE) 3 else 1
    return intArrayOf(1, channels, manifest.height, manifest.width)
}

/** Names of parts that a task calls and the bundle has not. */
internal fun missingParts(manifest: Manifest, task: Task): List<String> {
    val names = manifest.parts.map { it.name }
    return task.flow.calls.map { it.part }.distinct().filter { it !in names }
}

/** The part of a call; throws [Damaged] where it was not exported. */
internal fun partOf(manifest: Manifest, call: Call): Part =
    manifest.parts.firstOrNull { it.name == call.part }
        ?: throw Damaged(MANIFEST, "the bundle has no ${call.part}")

/** B: the first extent of what calls in a pass take and give, other than 1. */
internal fun batchOf(manifest: Manifest, task: Task): Int {
    val extents = task.flow.calls.filter { it.stage == When.PASS }.flatMap { call ->
        val part = partOf(manifest, call)
        (part.inputsOf(task.name) + part.outputs).map { it.shape.firstOrNull() ?: 0 }
    }
    val batch = maxOf(1, extents.maxOrNull() ?: 1)
    refuseUnless(extents.all { it == 1 || it == batch }, "$MANIFEST: task ${task.name}") {
        "calls in a pass have several batches: ${extents.toSortedSet()}"
    }
    return batch
}

/** Rule 12 of one task; one whose parts are not all there does not run, and is not looked at. */
internal fun checkWiring(manifest: Manifest, task: Task, constants: Safetensors?) {
    if (missingParts(manifest, task).isEmpty()) Wiring(manifest, task, constants).check()
}

private class Wiring(
    private val manifest: Manifest,
    private val task: Task,
    private val constants: Safetensors?,
) {
    private val where = "$MANIFEST: task ${task.name}"
    private val prompted = promptedCalls(task)
    private val columns = HashMap<String, Int?>()
    private var batch = 1

    fun check() {
        if (task.flow.prediction != null) {
            refuseUnless(manifest.latent != null && manifest.schedules.isNotEmpty(), where) {
                "no latent or no table"
            }
            latentShape(manifest)
        }
        for (call in task.flow.calls) checkSpecs(partOf(manifest, call))
        batch = batchOf(manifest, task)
        refuseUnless(batch <= LARGEST_BATCH, where) { "a batch of $batch, at most $LARGEST_BATCH" }
        for (call in task.flow.calls) {
            for (spec in partOf(manifest, call).inputsOf(task.name)) {
                val place = "$where: call ${call.id}: input ${quoted(spec.name)}"
                checkInput(call, spec, call.inputs.getValue(spec.name), place)
            }
        }
        checkResults()
    }

    private fun checkSpecs(part: Part) {
        val at = "$MANIFEST: part ${part.name}"
        refuseUnless((part.inputsOf(task.name) + part.outputs).all { it.shape.isNotEmpty() }, at) {
            "a tensor without a first extent"
        }
        refuseUnless(part.outputs.all { it.type == ElementType.FLOAT32 }, at) {
            "its outputs must be float32"
        }
    }

    private fun checkInput(call: Call, spec: TensorSpec, value: Value, place: String) {
        val tokens = value.sources.filter { it.kind == SourceKind.TOKENS }
        val isPlain = tokens.all { it.multiply == null && it.divide == null }
        refuseUnless(isPlain && (tokens.isEmpty() || tokens.size == value.sources.size), place) {
            "tokens are neither joined with other kinds nor scaled"
        }
        val type = if (tokens.isEmpty()) ElementType.FLOAT32 else ElementType.INT32
        refuseUnless(spec.type == type, place) {
            "it must be ${type.name.lowercase(java.util.Locale.ROOT)}"
        }
        val first = spec.shape[0]
        refuseUnless(first == 1 || call.stage == When.PASS, place) { "a batch of $first" }
        val isShared = call.stage == When.PASS && first == 1 && batch > 1
        refuseUnless(!isShared || !varies(value), place) { "it differs by branch and has batch 1" }
        val expected = spec.shape.copyOf().also { it[0] = 1 }
        val shape = valueShape(value, expected, place)
        refuseUnless(shape.contentEquals(expected), place) {
            "it must be ${Tensor.shown(expected)}, it gets ${Tensor.shown(shape)}"
        }
        if (value.empty != null) {
            refuseUnless(constant(value.empty).contentEquals(expected), place) {
                "empty has another shape"
            }
        }
    }

    /** Whether a value may differ between the branches of one pass. */
    private fun varies(value: Value): Boolean = value.empty != null || value.sources.any { source ->
        source.only != null || source.kind == SourceKind.OUTPUT &&
            (source.call in prompted || callOf(task, source.call.orEmpty()).stage == When.PASS)
    }

    private fun valueShape(value: Value, expected: IntArray, place: String): IntArray {
        val shapes = value.sources.map { sourceShape(it, expected, place) }
        refuseUnless(shapes.all { it.firstOrNull() == 1 }, place) {
            "a source's first extent is not 1"
        }
        if (shapes.size == 1) return shapes[0]
        refuseUnless(value.sources.none(::fills), place) { "what fills the input is not alone" }
        val axis = value.axis ?: 0
        val first = shapes[0]
        val fit = axis < first.size && shapes.all { shape ->
            shape.size == first.size && shape.indices.all { it == axis || shape[it] == first[it] }
        }
        refuseUnless(fit, place) { "its sources cannot be joined along axis $axis" }
        val extent = shapes.fold(0L) { sum, shape -> sum + shape[axis] }
        refuseUnless(extent <= Int.MAX_VALUE, place) { "an extent of $extent" }
        return first.copyOf().also { it[axis] = extent.toInt() }
    }

    private fun fills(source: Source): Boolean = source.kind == SourceKind.NUMBER ||
        source.kind == SourceKind.COLUMN && columnLength(source.name.orEmpty()) == null

    private fun sourceShape(source: Source, expected: IntArray, place: String): IntArray {
        val name = source.name.orEmpty()
        return when (source.kind) {
            SourceKind.LATENT, SourceKind.GUIDED -> latentShape(manifest)
            SourceKind.COLUMN -> columnLength(name)?.let { intArrayOf(1, it) } ?: expected
            SourceKind.NUMBER -> expected
            SourceKind.CONSTANT -> constant(name)
            SourceKind.TOKENS -> {
                val length =
                    manifest.tokenizers.firstOrNull { it.path == source.tokenizer }?.length ?: 0
                refuseUnless(length in PROMPT_LENGTHS, place) {
                    "a prompt of $length tokens; legal are $PROMPT_LENGTHS"
                }
                intArrayOf(1, length)
            }
            SourceKind.PICTURE -> pictureShape(source, place)
            SourceKind.TENSOR -> task.inputs.tensors.getValue(name)
            SourceKind.OUTPUT -> outputShape(outputOf(source), place)
        }
    }

    /** The length of a column of the tables; null of a number. */
    private fun columnLength(name: String): Int? {
        if (name !in columns) columns[name] = lengthInEveryPass(name)
        return columns[name]
    }

    private fun lengthInEveryPass(name: String): Int? {
        val passes = manifest.schedules.flatMap { it.passes }
        val lengths = passes.map { pass ->
            val column = pass.columns[name]
                ?: throw Damaged("$MANIFEST: loop", "a pass has no column ${quoted(name)}")
            if (name in pass.scalars) null else column.size
        }
        refuseUnless(lengths.toSet().size == 1, "$MANIFEST: loop") {
            "column ${quoted(name)} is not alike in every pass"
        }
        return lengths[0]
    }

    private fun pictureShape(source: Source, place: String): IntArray {
        val shape = pictureShape(manifest, task.inputs.pictures.getValue(source.name.orEmpty()))
        val step = source.every ?: source.mean ?: 1
        refuseUnless(shape[2] % step == 0 && shape[3] % step == 0, place) {
            "$step does not divide the picture"
        }
        return intArrayOf(shape[0], shape[1], shape[2] / step, shape[3] / step)
    }

    private fun outputShape(output: OutputName, place: String): IntArray {
        val spec = outputSpec(manifest, task, output) ?: throw Damaged(place, "no such output")
        val isInPass = callOf(task, output.call).stage == When.PASS
        refuseUnless(spec.shape[0] == 1 || isInPass && spec.shape[0] == batch, place) {
            "${quoted(output.name)} has a batch of ${spec.shape[0]}"
        }
        return spec.shape.copyOf().also { it[0] = 1 }
    }

    private fun checkResults() {
        val flow = task.flow
        flow.prediction?.let { prediction ->
            requireResult("prediction", prediction, latentShape(manifest))
            val first = outputSpec(manifest, task, prediction)?.shape?.get(0)
            refuseUnless(first == batch, "$where: prediction") {
                "a batch of $first, that of the pass is $batch"
            }
        }
        flow.refined?.let { requireResult("refined", it, latentShape(manifest)) }
        requireResult("picture", flow.picture, intArrayOf(1, 3, manifest.height, manifest.width))
        flow.start?.let { start ->
            val expected = latentShape(manifest)
            val shape = sourceShape(start, expected, "$where: start")
            refuseUnless(shape.contentEquals(expected), "$where: start") {
                "it must be ${Tensor.shown(expected)}, it is ${Tensor.shown(shape)}"
            }
        }
    }

    private fun requireResult(key: String, output: OutputName, expected: IntArray) {
        val shape = outputShape(output, "$where: $key")
        refuseUnless(shape.contentEquals(expected), "$where: $key") {
            "it must be ${Tensor.shown(expected)}, it is ${Tensor.shown(shape)}"
        }
    }

    private fun constant(name: String): IntArray {
        val shape = constants?.shape(name) ?: throw Damaged(CONSTANTS, "${quoted(name)} is missing")
        refuseUnless(constants.isFloat(name), CONSTANTS) { "${quoted(name)} is not float32" }
        return shape
    }
}
