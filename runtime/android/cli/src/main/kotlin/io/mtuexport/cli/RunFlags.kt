package io.mtuexport.cli

import io.mtuexport.core.TableKey
import io.mtuexport.core.TaskInfo

/** The flags of `run`. */
internal object RunFlags {
    val OUTPUT = Flag(Command.OUTPUT, "Picture to write: PNG, JPEG.", "FILE")
    val PROMPT = Flag("--prompt", "Text that describes the picture, or the change to it.", "TEXT")
    val NEGATIVE =
        Flag(
            "--negative-prompt",
            "Text that the picture is led away from. Default: the empty prompt.",
            "TEXT",
        )
    val TASK = Flag("--task", "Task, where the bundle has several.", "NAME")
    val IMAGE = Flag("--image", "Picture to start from: PNG, JPEG.", "FILE")
    val MASK = Flag("--mask", "Mask: white where to repaint.", "FILE")
    val INPUT =
        Flag(
            "--input",
            "Another input of the task, by name: a picture, a .npy file or a number; " +
                "repeat for more.",
            "NAME=VALUE",
        )
    val STEPS = Flag("--steps", "Denoising steps. Default: the task's own.", "N")
    val STRENGTH =
        Flag(
            "--strength",
            "How far to leave the input image, above 0 and up to 1, one of those baked. " +
                "Default: the task's own.",
            "SHARE",
        )
    val SEED = Flag("--seed", "Seed of the noise. Default: 0.", "N")
    val NOISE = Flag("--noise", "Noise from a .npy file, in place of a seed.", "FILE")
    val GUIDANCE =
        Flag(
            "--guidance",
            "Strength of the prompt; 1 is without guidance. Default: the task's own.",
            "SCALE",
        )
    val IMAGE_GUIDANCE =
        Flag("--image-guidance", "Strength of the input image. Default: the task's own.", "SCALE")
    val ALL =
        listOf(
            OUTPUT,
            PROMPT,
            NEGATIVE,
            TASK,
            IMAGE,
            MASK,
            INPUT,
            STEPS,
            STRENGTH,
            SEED,
            NOISE,
            GUIDANCE,
            IMAGE_GUIDANCE,
            Engines.SDK,
            Command.FORCE,
        )
}

/** What the user asks of `run`, checked as far as that needs no bundle. */
internal class Asked private constructor(words: Words) {
    val prompt: String? = words.text(RunFlags.PROMPT)
    val negativePrompt: String? = words.text(RunFlags.NEGATIVE)
    val task: String? = words.text(RunFlags.TASK)
    val steps: Int? = words.whole(RunFlags.STEPS)?.toInt()
    val strength: Double? = words.number(RunFlags.STRENGTH, 0, 1)
    val seed: Long? = words.whole(RunFlags.SEED, 0..LARGEST_SEED)
    val noise: String? = words.text(RunFlags.NOISE)
    val guidance: Double? = words.number(RunFlags.GUIDANCE, -LARGEST_SCALE, LARGEST_SCALE)
    val imageGuidance: Double? =
        words.number(RunFlags.IMAGE_GUIDANCE, -LARGEST_SCALE, LARGEST_SCALE)

    /** Files and numbers by the name of the input. */
    val inputs = LinkedHashMap<String, String>()

    init {
        words.text(RunFlags.IMAGE)?.let { inputs["image"] = it }
        words.text(RunFlags.MASK)?.let { inputs["mask"] = it }
        for (text in words.all(RunFlags.INPUT)) {
            val name = text.substringBefore('=', "")
            val value = text.substringAfter('=', "")
            if (name.isEmpty() || value.isEmpty())
                throw Refusal("--input takes NAME=VALUE, got ${quoted(text)}")
            inputs[name] = value
        }
        if (seed != null && noise != null)
            throw Refusal("--noise FILE is the noise itself; give no --seed")
    }

    /** The table of the request, which [Requests] has checked; null of a task without a loop. */
    fun table(task: TaskInfo): TableKey? =
        task.allowed.firstOrNull {
            it.steps == (steps ?: task.steps) &&
                it.strength == if (it.strength == null) null else strength ?: task.strength
        }

    companion object {
        private const val LARGEST_SEED = 4_294_967_295L
        private const val LARGEST_SCALE = 100

        fun of(words: Words): Asked = Asked(words)
    }
}
