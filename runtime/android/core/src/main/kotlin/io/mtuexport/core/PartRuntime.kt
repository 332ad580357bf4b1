package io.mtuexport.core

import java.io.File

/** What runs parts: ONNX Runtime (module `onnx`), ExecuTorch (module `executorch`), or a fake. */
public interface PartRuntime {
    /** The `target` of bundles that it runs. */
    public val target: Target

    /**
     * Loads one entry of a part. Called on the pipeline's own thread, and blocks it.
     *
     * Any exception becomes [MtuException.PartFailed] of the phase [Phase.OPEN]; a
     * [MtuException] and an [OutOfMemoryError] are handled as what they are.
     */
    public fun open(part: LoadedPart): PartSession
}

/** One entry of a part, as a runtime needs it to load it. */
public class LoadedPart(
    /** The part's name, for messages alone. */
    public val name: String,
    /** The artefact: a folder with `.onnx` files, or a `.pte` file. */
    public val path: File,
    /** The file in the folder (ONNX), or the method (ExecuTorch). */
    public val entry: String,
    /** Inputs in order. */
    public val inputs: List<TensorSpec>,
    /** Outputs in order; all float32. */
    public val outputs: List<TensorSpec>,
    /** Bytes of the artefact and of the weights beside it. */
    public val bytes: Long,
    /** `versions` of the manifest: what the part was made with. */
    public val versions: Map<String, String>,
)

/** A loaded entry of a part. Used by one thread at a time, but for [interrupt]. */
public interface PartSession : AutoCloseable {
    /**
     * Runs it: a tensor for each input by name → a tensor for each output by name, of the specs'
     * shapes. Outputs are the caller's: no later call changes them.
     */
    public fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats>

    /**
     * From any thread, also again and again: a running [run] ends soon, with whatever exception. It
     * does nothing where none runs, and by default; a pipeline then waits for the end of the run.
     */
    public fun interrupt() {}

    /** Frees what it holds. Called once, and never while [run] runs. */
    override fun close()
}
