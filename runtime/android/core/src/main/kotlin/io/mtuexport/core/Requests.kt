package io.mtuexport.core

import kotlin.time.Duration

/**
 * Raw pixels, row by row, four bytes each: red, green, blue, alpha; alpha is not premultiplied.
 *
 * What it may be is checked with the request: 1 to 100,000,000 pixels, 4 bytes each, an orientation
 * of 1 to 8.
 *
 * @property width Columns, as stored.
 * @property height Rows, as stored.
 * @property pixels They are not copied.
 * @property orientation That of EXIF, 1 to 8, see [Exif]; a picture is turned before it is fitted.
 */
public class RgbaImage
@JvmOverloads
constructor(
    public val width: Int,
    public val height: Int,
    public val pixels: ByteArray,
    public val orientation: Int = 1,
) {
    /** Other forms of pixels. */
    public companion object {
        /**
         * Grey of 16 bits without alpha, row by row: each level / 257, rounded half to even (I3).
         */
        @JvmStatic
        @JvmOverloads
        public fun ofGrey16(
            width: Int,
            height: Int,
            levels: ShortArray,
            orientation: Int = 1,
        ): RgbaImage {
            val pixels =
                ByteArray(Math.multiplyExact(4, levels.size)) {
                    if (it % 4 == 3) -1
                    else Math.rint((levels[it / 4].toInt() and 0xFFFF) / 257.0).toInt().toByte()
                }
            return RgbaImage(width, height, pixels, orientation)
        }
    }
}

/**
 * Raw pixels, row by row, three bytes each: red, green, blue.
 *
 * @property width Columns.
 * @property height Rows.
 * @property pixels 3 · width · height bytes.
 */
public class RgbImage(public val width: Int, public val height: Int, public val pixels: ByteArray)

/**
 * What takes the place of a task's guidance scales; null keeps the task's.
 *
 * @property text s_T of the contract; guidance is off at 1 and below.
 * @property image s_I of the contract; guidance is off below 1.
 */
public class GuidanceScales
@JvmOverloads
constructor(public val text: Double? = null, public val image: Double? = null)

/**
 * What the user asks for; [TaskInfo] says what a task takes. What is missing is the task's default.
 */
public class Request
@JvmOverloads
constructor(
    /** Needed where the task takes one, and refused elsewhere. */
    public val prompt: String? = null,
    /** What takes the place of the empty prompt. */
    public val negativePrompt: String? = null,
    /**
     * Pictures and masks by their names in the task's `inputs`; the usual ones are `image`, `mask`.
     */
    public val pictures: Map<String, RgbaImage> = emptyMap(),
    /** Tensors by name: of `inputs.tensors`, or fitted pictures [1, channels, H, W]. Finite. */
    public val tensors: Map<String, Tensor.Floats> = emptyMap(),
    /** Numbers by name. */
    public val numbers: Map<String, Double> = emptyMap(),
    /** The step count of a table. */
    public val steps: Int? = null,
    /** The strength of a table, where the loop starts from a picture. */
    public val strength: Double? = null,
    /** The scales of the guidance, each -10,000 to 10,000. */
    public val guidance: GuidanceScales = GuidanceScales(),
    /** What the loop begins from; without meaning for a task without a loop. */
    public val noise: Noise = Noise.Seed(0),
)

/** What happens while a picture is made; [Finished] is the last. */
public sealed class Event {
    /**
     * A part is being loaded.
     *
     * @property part Its name.
     */
    public class Loading(public val part: String) : Event()

    /** A pass of the loop has ended. */
    public class Passed(
        /** From 1. */
        public val number: Int,
        /** How many there are: of some tables more or fewer than the step count. */
        public val of: Int,
        /** Since the request was begun. */
        public val elapsed: Duration,
        /**
         * A copy of x after the pass, [1, C, h, w]; only where `PipelineOptions.latents` asks for
         * it.
         */
        public val latent: Tensor.Floats? = null,
    ) : Event()

    /** The picture. */
    public class Finished(
        /** Of the bundle's height and width. */
        public val picture: RgbImage,
        /** [1, 3, H, W] in -1..1, not clipped. */
        public val tensor: Tensor.Floats,
        /** The seed of the noise; null where values were given, and without a loop. */
        public val seed: Long?,
        /** Where the time went. */
        public val timings: Timings,
    ) : Event()
}

/** Where the time of a picture went. */
public class Timings(
    /** All of it, with fitting, text and loop. */
    public val total: Duration,
    /** Loading by part; nothing of a part that was loaded already. */
    public val load: Map<String, Duration>,
    /** Running by part, all calls of it together. */
    public val run: Map<String, Duration>,
)

/** What stays loaded between parts and between pictures. */
public enum class Memory {
    /** One part, or those of a pass together; nothing after a picture. The default. */
    LEAST,

    /** Parts of the kind `denoiser` stay; of the others one at a time. */
    UNET,

    /** Every part, once loaded. */
    ALL,
}
