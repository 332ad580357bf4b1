package io.mtuexport.testkit

import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import kotlin.math.cos
import kotlin.math.tanh

/**
 * A part that is a formula (`loops.json` of the contract's vectors): of output j, element o of
 * batch entry b is `tanh(Σ_k weight_k · Σ_t in_k[b, t mod n_k] · cos(t + k + 7·j))` over `t mod n =
 * o`.
 *
 * @param inputs In order: their number is k.
 * @param outputs In order: their number is j.
 * @param weights A number for each input.
 */
public class ClosedForm(
    private val inputs: List<TensorSpec>,
    private val outputs: List<TensorSpec>,
    private val weights: List<Double>,
) {
    /** An output for each spec, from a tensor for each input. */
    public fun run(values: Map<String, Tensor>): Map<String, Tensor.Floats> =
        outputs.withIndex().associate { (j, spec) -> spec.name to output(j, spec, values) }

    private fun output(j: Int, spec: TensorSpec, values: Map<String, Tensor>): Tensor.Floats {
        val batch = spec.shape[0]
        val count = Tensor.elements(spec.shape).toInt() / batch
        val sums = DoubleArray(batch * count)
        inputs.forEachIndexed { k, input ->
            val value = numbers(values.getValue(input.name))
            val entries = input.shape[0]
            val length = value.size / entries
            for (t in 0 until maxOf(length, count)) {
                val factor = weights[k] * cos((t + k + 7 * j).toDouble())
                for (b in 0 until batch) {
                    sums[b * count + t % count] += factor * value[b % entries * length + t % length]
                }
            }
        }
        return Tensor.Floats(spec.shape, FloatArray(sums.size) { tanh(sums[it]).toFloat() })
    }

    private fun numbers(tensor: Tensor): DoubleArray =
        when (tensor) {
            is Tensor.Floats -> DoubleArray(tensor.data.size) { tensor.data[it].toDouble() }
            is Tensor.Ints -> DoubleArray(tensor.data.size) { tensor.data[it].toDouble() }
        }
}
