package io.mtuexport.core

// The manifest as `manifest.schema.json` says, after rules 1 to 13 have been checked.

/** The runtime that a bundle is for. */
public enum class Target(
    /** As the manifest writes it. */
    public val label: String,
) {
    /** ONNX Runtime. */
    ONNX("onnx"),

    /** ExecuTorch. */
    EXECUTORCH("executorch"),

    /** Core ML: read, never run here. */
    COREML("coreml"),
}

/** Type of an input's or output's elements. */
public enum class ElementType { FLOAT32, INT32 }

/** An input or output of a part. */
public class TensorSpec(
    /** Its name in the manifest. */
    public val name: String,
    /** Static extents. */
    public val shape: IntArray,
    /** Type of its elements. */
    public val type: ElementType,
)

/** What a part is, for people and for what to keep in memory. */
public enum class PartKind { DENOISER, TEXT_ENCODER, IMAGE_ENCODER, IMAGE_DECODER, NETWORK }

internal enum class SourceKind {
    LATENT,
    COLUMN,
    CONSTANT,
    TOKENS,
    PICTURE,
    TENSOR,
    NUMBER,
    OUTPUT,
    GUIDED,
}

internal enum class Only { PROMPT, IMAGE }

internal class Source(
    val kind: SourceKind,
    val name: String? = null,
    val tokenizer: String? = null,
    val call: String? = null,
    val outside: String? = null,
    val every: Int? = null,
    val mean: Int? = null,
    val multiply: Double? = null,
    val divide: Double? = null,
    val only: Only? = null,
)

internal class Value(val sources: List<Source>, val axis: Int?, val empty: String?)

internal enum class When { ONCE, PASS, GUIDED, END }

internal class Call(
    val id: String,
    val part: String,
    val stage: When,
    val inputs: Map<String, Value>,
)

internal data class OutputName(val call: String, val name: String)

internal class Flow(
    val calls: List<Call>,
    val start: Source?,
    val prediction: OutputName?,
    val refined: OutputName?,
    val picture: OutputName,
)

/** How branches with and without prompt and image are weighed against each other. */
public enum class GuidanceKind { NONE, TEXT, TEXT_IMAGE }

/** Kind of guidance and its scales, s_T and s_I of the contract. */
public class Guidance(
    /** The branches. */
    public val kind: GuidanceKind,
    /** s_T; null of [GuidanceKind.NONE]. */
    public val text: Double? = null,
    /** s_I; of [GuidanceKind.TEXT_IMAGE] alone. */
    public val image: Double? = null,
)

/** What a picture of a request is. */
public enum class PictureKind {
    /** Three channels. */
    PICTURE,

    /** One channel of levels. */
    GREY,

    /** One channel of 0 and 1; 1 is repainted. */
    MASK,
}

internal enum class Filter { LANCZOS, NEAREST }

internal enum class Range { SIGNED, UNIT, LEVELS }

internal class PictureInput(val kind: PictureKind, val filter: Filter, val range: Range)

/** A number of a request. */
public class NumberRange(
    /** What it is where the request has none. */
    public val default: Double,
    /** The least that is legal. */
    public val minimum: Double,
    /** The most that is legal. */
    public val maximum: Double,
)

internal class TaskInputs(
    val pictures: Map<String, PictureInput>,
    val tensors: Map<String, IntArray>,
    val numbers: Map<String, NumberRange>,
)

internal class Task(
    val name: String,
    val guidance: Guidance,
    val steps: Int,
    val strength: Double?,
    val prompt: String?,
    val inputs: TaskInputs,
    val flow: Flow,
)

internal class FileRecord(val path: String, val bytes: Long, val sha256: String)

internal class Part(
    val name: String,
    val kind: PartKind,
    val file: FileRecord,
    val data: List<String>,
    val entries: Map<String, String>,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val taskInputs: Map<String, List<TensorSpec>>,
    val weightBytes: Long,
    val taskWeightBytes: Map<String, Long>, // of one task alone, where tasks share the part
    val sharedWeightBytes: Long,
    val flopsConvLinear: Long,
    val flopsTotal: Long,
    val parameters: Long,
    val quantisedActivations: String?, // null of float32
    val witness: Set<String>, // tasks
) {
    fun inputsOf(task: String): List<TensorSpec> = taskInputs[task] ?: inputs
}

internal class Pass(
    val columns: Map<String, DoubleArray>, // one number: an array of one in `scalars`
    val scalars: Set<String>,
    val inputScale: Double,
    val x: DoubleArray,
    val m: DoubleArray,
    val noise: Double,
)

internal class Schedule(
    val steps: Int,
    val strength: Double?,
    val startNoise: Double,
    val startPicture: Double,
    val passes: List<Pass>,
)

internal class ProofEntry(
    val part: String,
    val task: String,
    val stage: String,
    val psnrDb: Double?,
    val floorDb: Double,
    val passed: Boolean?,
)

internal class TokenizerRecord(
    val path: String,
    val bos: Long,
    val eos: Long,
    val pad: Long,
    val length: Int,
)

internal class Golden(
    val prompt: String,
    val negativePrompt: String?,
    val steps: Int?,
    val strength: Double?,
)

internal class Latent(val channels: Int, val factor: Int)

internal class Manifest(
    val name: String,
    val schemaVersion: String,
    val target: Target,
    val versions: Map<String, String>,
    val height: Int,
    val width: Int,
    val latent: Latent?,
    val tasks: List<Task>,
    val parts: List<Part>,
    val tokenizers: List<TokenizerRecord>,
    val files: List<FileRecord>,
    val schedules: List<Schedule>,
    val golden: Golden?,
    val proof: List<ProofEntry>,
)
