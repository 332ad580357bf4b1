package io.mtuexport.core.bench

import io.mtuexport.core.ElementType
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import java.io.File

/** What ends a job early: an exit code of the runner's README, and one line. */
internal class JobFailure(val code: Int, reason: String, cause: Throwable? = null) :
    Exception(reason, cause)

internal const val BAD_JOB = 2
internal const val BAD_FILE = 3
internal const val NO_ENGINE = 4
internal const val PART_FAILED = 5

internal const val LARGEST_TENSOR = 1L shl 30
internal const val LARGEST_REGISTERS = 1L shl 32

/** Type and shape of a register. */
internal class Form(val type: ElementType, val shape: IntArray) {
    val elements: Long
        get() = Tensor.elements(shape)

    val bytes: Long
        get() = 4 * elements

    override fun equals(other: Any?): Boolean =
        other is Form && other.type == type && other.shape.contentEquals(shape)

    override fun hashCode(): Int = 31 * type.hashCode() + shape.contentHashCode()

    override fun toString(): String =
        (if (type == ElementType.FLOAT32) "float32" else "int32") + Tensor.shown(shape)
}

internal class JobPart(
    val name: String,
    val path: String,
    val entry: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
)

/** An instruction. Registers are slots: each is written once in a run. */
internal sealed class Step {
    class Call(val part: Int, val inputs: List<Int>, val outputs: List<Int?>) : Step()

    class Sum(val factors: DoubleArray, val terms: List<Int>, val out: Int) : Step()

    class Scale(val by: Float, val divides: Boolean, val source: Int, val out: Int) : Step()

    class Concat(val axis: Int, val sources: List<Int>, val out: Int) : Step()

    class Slice(val begin: Int, val source: Int, val out: Int) : Step()
}

/** A job that fits together. */
internal class Job(
    val folder: File,
    val engine: String,
    val options: Map<String, String>,
    val threads: Int,
    val warmup: Int,
    val samples: Int,
    val cooldownMs: Long,
    val deadlineS: Double,
    val loadAgain: Boolean,
    val parts: List<JobPart>,
    val tensors: TensorFile?,
    val forms: List<Form>,
    /** Slots that a tensor of the file fills before every run. */
    val initial: Map<Int, String>,
    val program: List<Step>,
    /** Slots by register's name, after the last instruction. */
    val registers: Map<String, Int>,
    val expected: Map<String, String>,
    val outputs: String?,
    val keep: List<String>,
)
