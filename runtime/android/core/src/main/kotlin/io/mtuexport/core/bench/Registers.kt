package io.mtuexport.core.bench

import io.mtuexport.core.ElementType
import io.mtuexport.core.PartSession
import io.mtuexport.core.Tensor

/** The registers of a job's program, and its runs. */
internal class Registers(private val job: Job, private val sessions: List<PartSession>) {
    private val slots = arrayOfNulls<Tensor>(job.forms.size)
    private val calls = job.parts.map { ArrayList<Double>() }

    init {
        for ((slot, name) in job.initial) slots[slot] = checkNotNull(job.tensors).read(name)
    }

    /** Seconds of the calls of each part that counted. */
    val seconds: List<List<Double>>
        get() = calls

    /** What a register holds. */
    fun at(register: String): Tensor = at(job.registers.getValue(register))

    /** Runs the program once; returns seconds. */
    fun sample(counts: Boolean): Double {
        val start = System.nanoTime()
        for (step in job.program) {
            when (step) {
                is Step.Call -> call(step, counts)
                is Step.Sum -> sum(step)
                is Step.Scale -> scale(step)
                is Step.Concat -> concat(step)
                is Step.Slice -> slice(step)
            }
        }
        return since(start)
    }

    private fun at(slot: Int): Tensor = checkNotNull(slots[slot])

    private fun floats(slot: Int): FloatArray = (at(slot) as Tensor.Floats).data

    // The memory of a result is kept from run to run.
    private fun target(slot: Int): Tensor =
        slots[slot]
            ?: job.forms[slot]
                .let { form ->
                    val count = Math.toIntExact(form.elements)
                    if (form.type == ElementType.FLOAT32)
                        Tensor.Floats(form.shape, FloatArray(count))
                    else Tensor.Ints(form.shape, IntArray(count))
                }
                .also { slots[slot] = it }

    private fun call(step: Step.Call, counts: Boolean) {
        val part = job.parts[step.part]
        val inputs = part.inputs.indices.associate { part.inputs[it].name to at(step.inputs[it]) }
        val start = System.nanoTime()
        val outputs = sessions[step.part].run(inputs)
        if (counts) calls[step.part] += since(start)
        for ((index, spec) in part.outputs.withIndex()) {
            val slot = step.outputs[index] ?: continue
            val output = outputs[spec.name]
            if (output == null || !output.shape.contentEquals(spec.shape)) {
                throw JobFailure(
                    BAD_FILE,
                    "output '${spec.name}' has another shape in the artefact",
                )
            }
            slots[slot] = output
        }
    }

    private fun sum(step: Step.Sum) {
        val out = (target(step.out) as Tensor.Floats).data
        val terms = Array(step.terms.size) { floats(step.terms[it]) }
        for (index in out.indices) {
            var total = 0.0
            for (term in terms.indices) total += step.factors[term] * terms[term][index]
            out[index] = total.toFloat()
        }
    }

    private fun scale(step: Step.Scale) {
        val source = floats(step.source)
        val out = (target(step.out) as Tensor.Floats).data
        if (step.divides) for (index in out.indices) out[index] = source[index] / step.by
        else for (index in out.indices) out[index] = source[index] * step.by
    }

    private fun concat(step: Step.Concat) {
        val target = target(step.out)
        val blocks = target.shape.take(step.axis).fold(1) { product, extent -> product * extent }
        val stride = Math.toIntExact(Tensor.elements(target.shape)) / blocks
        var begin = 0
        for (slot in step.sources) {
            val source = at(slot)
            val width = Math.toIntExact(Tensor.elements(source.shape)) / blocks
            for (block in 0 until blocks) copy(
                source,
                block * width,
                target,
                block * stride + begin,
                width,
            )
            begin += width
        }
    }

    private fun slice(step: Step.Slice) {
        val target = target(step.out)
        val count = Math.toIntExact(Tensor.elements(target.shape))
        copy(at(step.source), step.begin * count, target, 0, count)
    }

    private fun copy(source: Tensor, from: Int, target: Tensor, to: Int, count: Int) {
        when (source) {
            is Tensor.Floats ->
                source.data.copyInto((target as Tensor.Floats).data, to, from, from + count)
            is Tensor.Ints ->
                source.data.copyInto((target as Tensor.Ints).data, to, from, from + count)
        }
    }
}

internal fun since(start: Long): Double = (System.nanoTime() - start) / 1e9

/** 20·log10(max|expected| / rmse), 999 where they are equal; what is not finite fails. */
internal fun decibels(register: String, expected: FloatArray, actual: FloatArray): Double {
    var peak = 0.0
    var squares = 0.0
    for (index in expected.indices) {
        val reference = expected[index].toDouble()
        val error = reference - actual[index]
        peak = Math.max(peak, Math.abs(reference))
        squares += error * error
    }
    if (squares == 0.0) return 999.0
    val result = 20 * Math.log10(peak / Math.sqrt(squares / expected.size))
    if (result.isNaN() || result.isInfinite()) {
        throw JobFailure(PART_FAILED, "register $register is not finite, or is compared with zeros")
    }
    return result
}
