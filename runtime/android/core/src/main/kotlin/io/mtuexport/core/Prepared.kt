package io.mtuexport.core

import kotlin.math.abs

/** A request that a task can serve: pictures fitted, the table chosen, the noise drawn. */
internal class Prepared(
    val prompt: String?,
    val negativePrompt: String?,
    /** [1, channels, H, W] by name. */
    val pictures: Map<String, Tensor.Floats>,
    val tensors: Map<String, Tensor.Floats>,
    val numbers: Map<String, Double>,
    val guidance: Guidance,
    /** Null without a loop. */
    val table: Schedule?,
    /** [1, C, h, w] or [1 + P, C, h, w]; null without a loop. */
    val noise: Tensor.Floats?,
    val seed: Long?,
) {
    companion object {
        /** Throws [MtuException.RequestRefused] for the first thing that is wrong. */
        fun of(manifest: Manifest, task: Task, request: Request): Prepared =
            RequestCheck(manifest, task, request).prepared()
    }
}

internal fun refuse(what: String, legal: Collection<String> = emptyList()): Nothing =
    throw MtuException.RequestRefused(what, legal.toList())

private class RequestCheck(
    private val manifest: Manifest,
    private val task: Task,
    private val request: Request,
) {
    private val inputs = task.inputs
    private val where = "task ${task.name}"

    /** What is cheap comes first; pictures are fitted when all else is well. */
    fun prepared(): Prepared {
        checkNames()
        checkNumbers()
        checkTensors()
        for ((name, picture) in request.pictures) requireFittable(picture, name)
        checkPrompts()
        val guidance = guidance()
        val table = if (task.flow.prediction == null) noTable() else table()
        val noise = table?.let { noise(it) }
        return Prepared(
            prompt = request.prompt,
            negativePrompt = request.negativePrompt,
            pictures =
                inputs.pictures.mapValues { (name, input) ->
                    request.pictures[name]?.let {
                        fitted(it, input, manifest.height, manifest.width)
                    } ?: request.tensors.getValue(name)
                },
            tensors = inputs.tensors.mapValues { request.tensors.getValue(it.key) },
            numbers =
                inputs.numbers.mapValues { (name, range) ->
                    request.numbers[name] ?: range.default
                },
            guidance = guidance,
            table = table,
            noise = noise,
            seed = (request.noise as? Noise.Seed)?.seed.takeIf { table != null },
        )
    }

    private fun checkNames() {
        val pictures = inputs.pictures.keys
        val tensors = inputs.tensors.keys
        requireKnown("picture", request.pictures.keys, pictures)
        requireKnown("tensor", request.tensors.keys, pictures + tensors)
        requireKnown("number", request.numbers.keys, inputs.numbers.keys)
        for (name in pictures) {
            if (name !in request.pictures && name !in request.tensors) {
                val what =
                    if (inputs.pictures.getValue(name).kind == PictureKind.MASK) "mask"
                    else "picture"
                refuse("$where needs a $what ${quoted(name)}", pictures)
            }
            if (name in request.pictures && name in request.tensors) {
                refuse("${quoted(name)} is there as a picture and as a tensor")
            }
        }
        for (name in tensors) if (name !in request.tensors)
            refuse("$where needs a tensor ${quoted(name)}", tensors)
    }

    private fun requireKnown(what: String, names: Set<String>, known: Set<String>) {
        val unknown = names.firstOrNull { it !in known } ?: return
        refuse("$where takes no $what ${quoted(unknown)}", known)
    }

    private fun checkNumbers() {
        for ((name, number) in request.numbers) {
            val range = inputs.numbers.getValue(name)
            if (number >= range.minimum && number <= range.maximum) continue
            refuse("${quoted(name)} must be ${range.minimum} to ${range.maximum}, it is $number")
        }
    }

    private fun checkTensors() {
        for ((name, tensor) in request.tensors) {
            val shape =
                inputs.pictures[name]?.let { pictureShape(manifest, it) }
                    ?: inputs.tensors.getValue(name)
            if (!tensor.shape.contentEquals(shape) || !tensor.isFinite()) {
                refuse(
                    "${quoted(name)} must be finite float32 ${Tensor.shown(shape)}, it is ${described(tensor)}"
                )
            }
        }
    }

    private fun described(tensor: Tensor.Floats) =
        if (tensor.isFinite()) Tensor.shown(tensor.shape)
        else "${Tensor.shown(tensor.shape)} with NaN or Inf"

    private fun checkPrompts() {
        val takesPrompt = promptedCalls(task).isNotEmpty()
        if (takesPrompt && request.prompt == null) refuse("$where needs a prompt")
        if (!takesPrompt && request.prompt != null) {
            refuse(
                if (task.prompt == null) "$where takes no prompt"
                else "$where has its own prompt, ${quoted(task.prompt)}"
            )
        }
        val takesNegative = takesPrompt && task.guidance.kind != GuidanceKind.NONE
        if (!takesNegative && request.negativePrompt != null) {
            refuse("$where takes no negative prompt: it has no guidance by text")
        }
    }

    private fun guidance(): Guidance {
        val ours = task.guidance
        val text = scale("text", request.guidance.text, ours.text)
        val image = scale("image", request.guidance.image, ours.image)
        return Guidance(ours.kind, text, image)
    }

    private fun scale(name: String, chosen: Double?, ours: Double?): Double? {
        if (chosen == null) return ours
        if (ours == null) refuse("$where takes no guidance by $name")
        if (!(abs(chosen) <= LARGEST_SCALE))
            refuse("guidance by $name must be -$LARGEST_SCALE to $LARGEST_SCALE, it is $chosen")
        return chosen
    }

    private fun noTable(): Schedule? {
        if (request.steps != null) refuse("$where takes no step count: it has no loop")
        if (request.strength != null) refuse("$where takes no strength: it has no loop")
        return null
    }

    private fun table(): Schedule {
        val hasStart = task.flow.start != null
        if (!hasStart && request.strength != null) {
            refuse("$where takes no strength: it does not start from a picture")
        }
        val steps = request.steps ?: task.steps
        val strength = if (hasStart) request.strength ?: task.strength else null
        val tables = tablesOf(manifest, task)
        return tables.firstOrNull { it.steps == steps && it.strength == strength }
            ?: refuse(
                if (hasStart) "no table for $steps steps at strength $strength"
                else "no table for $steps steps",
                tables.map { if (hasStart) "${it.steps} at ${it.strength}" else "${it.steps}" },
            )
    }

    private fun noise(table: Schedule): Tensor.Floats {
        val one = latentShape(manifest)
        val least = 1 + table.draws
        return when (val noise = request.noise) {
            is Noise.Seed -> {
                if (noise.seed < 0)
                    refuse("a seed is a whole number of at least 0, it is ${noise.seed}")
                val shape = one.copyOf().also { it[0] = least }
                Tensor.Floats(shape, NumpyNoise(noise.seed).draws(countOf(shape)))
            }
            is Noise.Values -> {
                val legal =
                    setOf(least, 1 + table.passes.size).map {
                        one.copyOf().also { shape -> shape[0] = it }
                    }
                val shape =
                    legal.firstOrNull { countOf(it) == noise.values.size }
                        ?: refuse(
                            "the noise has ${noise.values.size} numbers",
                            legal.map { "${countOf(it)}, ${Tensor.shown(it)}" },
                        )
                if (!noise.values.all { it.isFinite() }) refuse("the noise holds NaN or Inf")
                Tensor.Floats(shape, noise.values)
            }
        }
    }

    private companion object {
        private const val LARGEST_SCALE = 10_000
    }
}
