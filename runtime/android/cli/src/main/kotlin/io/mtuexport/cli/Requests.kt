package io.mtuexport.cli

import io.mtuexport.core.GuidanceKind
import io.mtuexport.core.GuidanceScales
import io.mtuexport.core.Noise
import io.mtuexport.core.Request
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.TaskInfo
import io.mtuexport.core.Tensor
import java.io.File

/**
 * Makes the request of a task, with the lines of `mtu-export run` for what the task does not take.
 *
 * @param warn Is told of what is legal but probably unintended.
 */
internal class Requests(
    private val task: TaskInfo,
    private val asked: Asked,
    private val warn: (String) -> Unit,
) {
    private val where = "task ${quoted(task.name)}"
    private val hasLoop = task.allowed.isNotEmpty()

    fun request(): Request {
        checkInputs()
        checkPrompts()
        checkLoop()
        val pictures =
            task.pictures.keys.associateWith { PictureFiles.read(File(asked.inputs.getValue(it))) }
        warnOfShapes(pictures)
        val tensors = task.tensors.mapValues { (name, shape) -> tensor(name, shape) }
        val numbers = task.numbers.keys.filter { it in asked.inputs }.associateWith(::number)
        val guidance = guidance()
        return Request(
            prompt = asked.prompt,
            negativePrompt = asked.negativePrompt,
            pictures = pictures,
            tensors = tensors,
            numbers = numbers,
            steps = asked.steps,
            strength = asked.strength,
            guidance = guidance,
            noise = noise(),
        )
    }

    private fun checkInputs() {
        val known = task.pictures.keys + task.tensors.keys + task.numbers.keys
        asked.inputs.keys
            .firstOrNull { it !in known }
            ?.let { throw Refusal("$where takes no ${flag(it)}") }
        val needed = task.pictures.keys + task.tensors.keys
        needed
            .firstOrNull { it !in asked.inputs }
            ?.let {
                throw Refusal("$where needs ${flag(it)}${if (it in SHORT) " FILE" else "FILE"}")
            }
        if (asked.strength != null && task.strength == null) {
            throw Refusal("$where takes no --strength: it does not start from a picture")
        }
    }

    private fun flag(name: String) = if (name in SHORT) "--$name" else "--input $name="

    private fun checkPrompts() {
        if (task.takesPrompt && asked.prompt == null) throw Refusal("$where needs --prompt TEXT")
        if (!task.takesPrompt && asked.prompt != null) {
            val fixed = task.fixedPrompt
            throw Refusal(
                if (fixed == null) "$where takes no prompt"
                else "$where has its own, ${quoted(fixed)}"
            )
        }
        if (asked.negativePrompt != null && !task.takesNegativePrompt) {
            throw Refusal("$where takes no --negative-prompt: it has no guidance by text")
        }
    }

    private fun checkLoop() {
        if (hasLoop) return
        val flag =
            when {
                asked.steps != null -> "--steps"
                asked.seed != null -> "--seed"
                asked.noise != null -> "--noise"
                else -> return
            }
        throw Refusal("$where takes no $flag: it has no loop")
    }

    private fun warnOfShapes(pictures: Map<String, RgbaImage>) {
        val sizes = pictures.mapValues { (_, picture) -> upright(picture) }
        val (first, size) = sizes.entries.firstOrNull() ?: return
        for ((name, other) in sizes) {
            val (a, b) = size
            val (c, d) = other
            if (Math.abs(a * d - b * c) <= maxOf(maxOf(a, b), maxOf(c, d))) continue
            warn(
                "the $first has $a x $b pixels, the $name $c x $d: each is cropped to fit by " +
                    "itself, so they do not match"
            )
        }
    }

    private fun upright(picture: RgbaImage): Pair<Long, Long> {
        val size = picture.width.toLong() to picture.height.toLong()
        return if (picture.orientation >= FIRST_TURNED) size.second to size.first else size
    }

    private fun tensor(name: String, shape: IntArray): Tensor.Floats {
        val path = asked.inputs.getValue(name)
        val tensor = Npy.read("--input $name=${path.take(LONGEST)}", File(path))
        if (!tensor.shape.contentEquals(shape)) {
            throw Refusal(
                "$name must be float32 ${Tensor.shown(shape)}, " +
                    "got float32 ${Tensor.shown(tensor.shape)}"
            )
        }
        return tensor
    }

    private fun number(name: String): Double {
        val text = asked.inputs.getValue(name)
        val number = decimal(text) ?: throw Refusal("--input $name: ${quoted(text)} is no number")
        val range = task.numbers.getValue(name)
        if (!(number >= range.minimum && number <= range.maximum)) {
            throw Refusal("$name must be ${brief(range.minimum)} to ${brief(range.maximum)}")
        }
        return number
    }

    private fun guidance(): GuidanceScales {
        val scales = task.guidance
        val kind = quoted(KINDS.getValue(scales.kind))
        if (asked.guidance != null && scales.text == null) {
            throw Refusal("--guidance: guidance of kind $kind has no such scale")
        }
        if (asked.imageGuidance != null && scales.image == null) {
            throw Refusal("--image-guidance: guidance of kind $kind has no such scale")
        }
        return GuidanceScales(asked.guidance, asked.imageGuidance)
    }

    private fun noise(): Noise {
        if (!hasLoop) return Noise.Seed(0)
        checkTable()
        val shape = task.noiseShape(checkNotNull(asked.table(task)))
        val path = asked.noise ?: return Noise.Seed(asked.seed ?: 0)
        val name = "--noise ${path.take(LONGEST)}"
        val given = Npy.read(name, File(path))
        val isSameBelow = given.shape.size == shape.size && given.shape.drop(1) == shape.drop(1)
        // Of a table whose passes draw none, the first array alone is taken.
        val isFirstTaken = isSameBelow && shape[0] == 1 && given.shape[0] > 1
        if (!given.shape.contentEquals(shape) && !isFirstTaken) {
            throw Refusal("$name must hold one float32 array of shape ${Tensor.shown(shape)}")
        }
        return Noise.Values(
            if (isFirstTaken) given.data.copyOf(Tensor.elements(shape).toInt()) else given.data
        )
    }

    private fun checkTable() {
        val steps = asked.steps ?: task.steps
        val counts = task.allowed.map { it.steps }.distinct().sorted()
        if (steps !in counts) {
            throw Refusal(
                "the bundle has no table for $steps steps; it has: ${counts.joinToString(", ")}"
            )
        }
        if (asked.table(task) != null) return
        val legal = task.allowed.filter { it.steps == steps }.mapNotNull { it.strength }.sorted()
        val names = legal.joinToString(", ", transform = ::brief).ifEmpty { "none" }
        val strength = pythonFloat(asked.strength ?: task.strength ?: 0.0)
        throw Refusal(
            "the bundle has no table for strength $strength at $steps steps; it has: $names"
        )
    }

    private companion object {
        private val SHORT = setOf("image", "mask")
        private val KINDS =
            mapOf(
                GuidanceKind.NONE to "none",
                GuidanceKind.TEXT to "text",
                GuidanceKind.TEXT_IMAGE to "text_image",
            )
        private const val LONGEST = 200
        private const val FIRST_TURNED = 5
    }
}
