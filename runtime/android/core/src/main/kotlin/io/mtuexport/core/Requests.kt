package io.mtuexport.core

import kotlin.time.Duration

/**
 * Raw pixels, row by row, four bytes each: red, green, blue, alpha; alpha is not premultiplied.
 *
 * @property orientation That of EXIF, 1 to 8.
 */
public class RgbaImage(
    public val width: Int,
    public val height: Int,
    public val pixels: ByteArray,
    public val orientation: Int = 1,
)

/** Raw pixels, row by row, three bytes each: red, green, blue. */
public class RgbImage(public val width: Int, public val height: Int, public val pixels: ByteArray)

/** What takes the place of a task's guidance scales; null keeps the task's. */
public class GuidanceScales(public val text: Double? = null, public val image: Double? = null)

/** What the user asks for. What is missing is the task's default. */
public class Request(
    public val prompt: String? = null,
    public val negativePrompt: String? = null,
    /** Pictures and masks by their names in the task's `inputs`; the usual ones are `image`, `mask`. */
    public val pictures: Map<String, RgbaImage> = emptyMap(),
    /** Tensors by name: of `inputs.tensors`, or fitted pictures [1, channels, H, W]. */
    public val tensors: Map<String, Tensor.Floats> = emptyMap(),
    public val numbers: Map<String, Double> = emptyMap(),
    public val steps: Int? = null,
    public val strength: Double? = null,
    public val guidance: GuidanceScales = GuidanceScales(),
    public val noise: Noise = Noise.Seed(0),
)

/** What happens while a picture is made; [Finished] is the last. */
public sealed class Event {
    /** A part is being loaded. */
    public class Loading(public val part: String) : Event()

    /** A pass of the loop has ended. */
    public class Passed(
        /** From 1. */
        public val number: Int,
        public val of: Int,
        /** Since the request was begun. */
        public val elapsed: Duration,
        /** x after the pass, [1, C, h, w]; only where `PipelineOptions.latents` asks for it. */
        public val latent: Tensor.Floats? = null,
    ) : Event()

    /** The picture. */
    public class Finished(
        public val picture: RgbImage,
        /** [1, 3, H, W] in -1..1, not clipped. */
        public val tensor: Tensor.Floats,
        /** The seed of the noise; null where values were given. */
        public val seed: Long?,
        public val timings: Timings,
    ) : Event()
}

/** Where the time of a picture went. */
public class Timings(
    public val total: Duration,
    /** Loading by part. */
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
