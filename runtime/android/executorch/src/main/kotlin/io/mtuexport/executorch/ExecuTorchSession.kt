package io.mtuexport.executorch

import io.mtuexport.core.ElementType
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.PartSession
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.util.Locale
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor as NativeTensor

/** A method of a file, with a direct buffer for each of its inputs. */
internal class ExecuTorchSession(private val module: Module, private val part: LoadedPart) :
    PartSession {
    private class Input(val spec: TensorSpec) {
        private val count = Math.toIntExact(Tensor.elements(spec.shape))
        private val shape = spec.shape.longs()
        private val floats: FloatBuffer?
        private val ints: IntBuffer?
        val value: EValue

        init {
            if (spec.type == ElementType.FLOAT32) {
                val buffer = NativeTensor.allocateFloatBuffer(count)
                floats = buffer
                ints = null
                value = EValue.from(NativeTensor.fromBlob(buffer, shape))
            } else {
                val buffer = NativeTensor.allocateIntBuffer(count)
                floats = null
                ints = buffer
                value = EValue.from(NativeTensor.fromBlob(buffer, shape))
            }
        }

        fun fill(tensor: Tensor) {
            require(tensor.shape.contentEquals(spec.shape)) {
                val given = Tensor.shown(tensor.shape)
                "input '${spec.name}' is ${Tensor.shown(spec.shape)}, not $given"
            }
            // Duplicates have positions of their own; `Buffer.clear` differs between class
            // libraries.
            when (tensor) {
                is Tensor.Floats -> target(floats).duplicate().put(tensor.data)
                is Tensor.Ints -> target(ints).duplicate().put(tensor.data)
            }
        }

        private fun <B> target(buffer: B?): B =
            requireNotNull(buffer) {
                "input '${spec.name}' is ${spec.type.name.lowercase(Locale.ROOT)}"
            }
    }

    private val inputs = part.inputs.map(::Input)
    private val values = Array(inputs.size) { inputs[it].value }

    override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
        for (input in this.inputs) {
            input.fill(
                requireNotNull(inputs[input.spec.name]) {
                    "input '${input.spec.name}' has no value"
                }
            )
        }
        val results = module.execute(part.entry, *values)
        check(results.size == part.outputs.size) {
            "method '${part.entry}' gives ${results.size} outputs, not ${part.outputs.size}"
        }
        // Their memory is the module's until it runs again: every one is copied here.
        return part.outputs.withIndex().associate { (index, spec) ->
            spec.name to copied(results[index], spec)
        }
    }

    private fun copied(value: EValue, spec: TensorSpec): Tensor.Floats {
        check(value.isTensor) { "output '${spec.name}' is no tensor" }
        val tensor = value.toTensor()
        check(tensor.dtype() == DType.FLOAT) {
            "output '${spec.name}' is ${tensor.dtype()}, not FLOAT"
        }
        check(tensor.shape().contentEquals(spec.shape.longs())) {
            val given = tensor.shape().contentToString()
            "output '${spec.name}' is $given, not ${Tensor.shown(spec.shape)}"
        }
        return Tensor.Floats(spec.shape, tensor.dataAsFloatArray)
    }

    override fun close(): Unit = module.destroy()
}

private fun IntArray.longs() = LongArray(size) { this[it].toLong() }
