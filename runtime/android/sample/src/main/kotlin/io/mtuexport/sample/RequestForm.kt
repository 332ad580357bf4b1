package io.mtuexport.sample

import io.mtuexport.core.Noise
import io.mtuexport.core.PictureKind
import io.mtuexport.core.Request
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.TableKey
import io.mtuexport.core.TaskInfo

/** What the user has typed, chosen and drawn. */
internal class RequestForm(
    private val prompt: String,
    private val negativePrompt: String,
    private val seed: String,
    private val table: TableKey?,
    private val picture: RgbaImage?,
    private val mask: Mask?,
) {
    /**
     * The request of it: what a task does not take is left out.
     *
     * @throws IllegalArgumentException Where something that the task needs is missing.
     */
    fun request(task: TaskInfo): Request {
        require(task.tensors.isEmpty()) {
            "this app has no way to enter ${task.tensors.keys.joinToString(", ")}"
        }
        val pictures =
            task.pictures.mapValues { (name, kind) ->
                if (kind == PictureKind.MASK) {
                    requireNotNull(turned()) { "draw over the picture what is to be painted anew" }
                } else {
                    requireNotNull(picture) { "choose a picture for '$name'" }
                }
            }
        return Request(
            prompt = prompt.takeIf { task.takesPrompt },
            negativePrompt = negativePrompt.takeIf { task.takesNegativePrompt && it.isNotEmpty() },
            pictures = pictures,
            steps = table?.steps,
            strength = table?.strength,
            noise =
                Noise.Seed(
                    if (seed.isEmpty()) 0
                    else requireNotNull(seed.toLongOrNull()) { "'$seed' is no seed" }
                ),
        )
    }

    // It was drawn over the picture as the file has it, so it is turned as that is.
    private fun turned(): RgbaImage? =
        mask?.image()?.let { RgbaImage(it.width, it.height, it.pixels, picture?.orientation ?: 1) }

    companion object {
        /** How a list shows a pair of steps and strength. */
        fun label(table: TableKey): String =
            "${table.steps} steps" + (table.strength?.let { ", strength $it" } ?: "")
    }
}
