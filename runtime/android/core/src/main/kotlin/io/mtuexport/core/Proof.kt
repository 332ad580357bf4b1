package io.mtuexport.core

// "Check on first start" of the contract: parts and loops against the goldens.

/** What a part or a loop reached against the bundle's goldens. */
public class Verdict
internal constructor(
    /** The part; `pipeline` of the loop. */
    public val part: String,
    /** The task whose goldens they are: the first with the entry, where tasks share one. */
    public val task: String,
    /** `exported` or `quantised` of a part; `passes` or `loop` of the loop. */
    public val stage: String,
    /** dB by output, of the worst case. */
    public val outputs: Map<String, Double>,
    /** What must be reached; without meaning of the stage `loop`. */
    public val floorDb: Double,
) {
    /**
     * The worst of [outputs]: positive infinity where all are equal, negative where one is no
     * number.
     */
    public val psnrDb: Double = outputs.values.minOrNull() ?: Double.NEGATIVE_INFINITY

    /** Whether the floor is reached; null of the stage `loop`, which is a figure. */
    public val passed: Boolean? = if (stage == LOOP) null else psnrDb >= floorDb

    internal companion object {
        const val PIPELINE = "pipeline"
        const val PASSES = "passes"
        const val LOOP = "loop"
    }
}

/** Reads the goldens of one task of a bundle. */
internal class Proof(
    private val manifest: Manifest,
    private val task: Task,
    private val goldens: Safetensors,
) {
    /** A part on its goldens: the worst of three cases by output. */
    fun ofPart(
        part: Part,
        run: (task: String, inputs: Map<String, Tensor>) -> Map<String, Tensor.Floats>,
    ): Verdict {
        val entry = part.entries.getValue(task.name)
        val proven = part.entries.entries.first { it.value == entry }.key
        val record = record(part.name, proven, "quantised", "exported")
        val worst = LinkedHashMap<String, Double>()
        for (case in 0 until CASES) {
            val prefix = "${part.name}/$proven/$case/"
            val inputs = part.inputsOf(proven).associate { it.name to tensor(prefix + it.name) }
            val outputs = run(proven, inputs)
            for (spec in part.outputs) {
                val db = psnrDb(floats(prefix + spec.name), outputs.getValue(spec.name))
                worst[spec.name] = minOf(worst[spec.name] ?: Double.POSITIVE_INFINITY, db)
            }
        }
        return Verdict(part.name, proven, record.stage, worst, record.floorDb)
    }

    /**
     * Each pass from the reference's states and the picture of the last latent; then the loop
     * running free, as a figure. Nothing where the bundle has no golden of this loop.
     */
    fun ofLoop(begin: (Prepared) -> Evaluation): List<Verdict> {
        val request = request() ?: return emptyList()
        val floor = record(Verdict.PIPELINE, task.name, Verdict.PASSES).floorDb
        val prepared =
            try {
                Prepared.of(manifest, task, request)
            } catch (error: MtuException.RequestRefused) {
                throw MtuException.BundleRefused(
                    0,
                    "$GOLDENS: loop/${task.name}",
                    error.what,
                    error,
                )
            }
        val evaluation = begin(prepared)
        evaluation.runOnce()
        val reference = ofLoop("picture")
        val outputs = LinkedHashMap<String, Double>()
        val figures = LinkedHashMap<String, Double>()
        try {
            var last: Tensor.Floats? = null
            var free: Tensor.Floats? = null
            if (prepared.table != null && prepared.noise != null) {
                val loop = Loop(prepared.table, prepared.noise, evaluation::denoise)
                val start = evaluation.start()
                last = passes(loop, start, outputs)
                free = loop.run(start)
                figures["x"] = psnrDb(last, free)
            }
            outputs["picture"] = psnrDb(reference, evaluation.picture(last))
            if (free != null) figures["picture"] = psnrDb(reference, evaluation.picture(free))
        } catch (_: MtuException.NotFinite) { // a figure of its own
            outputs["picture"] = Double.NEGATIVE_INFINITY
        }
        val verdict = Verdict(Verdict.PIPELINE, task.name, Verdict.PASSES, outputs, floor)
        val figure = Verdict(Verdict.PIPELINE, task.name, Verdict.LOOP, figures, 0.0)
        return if (figures.isEmpty()) listOf(verdict) else listOf(verdict, figure)
    }

    /** x after each pass, each from the reference's states; the reference's last x. */
    private fun passes(
        loop: Loop,
        picture: Tensor.Floats?,
        outputs: MutableMap<String, Double>,
    ): Tensor.Floats {
        var x = loop.start(picture)
        var states = emptyList<State>()
        for (index in loop.table.passes.indices) {
            val after = loop.advance(index, listOf(State(x, loop.ask(index, x))) + states)
            states = listOf(State(x, ofLoop("outputs/$index"))) + states
            x = ofLoop("latents/$index")
            outputs["latents/$index"] = psnrDb(x, after)
        }
        return x
    }

    /** The request of the goldens; null where there is none of this task. */
    fun request(): Request? {
        val golden = manifest.golden
        if (golden == null || "loop/${task.name}/picture" !in goldens.names) return null
        val takesPrompt = promptedCalls(task).isNotEmpty()
        val isGuided = takesPrompt && task.guidance.kind != GuidanceKind.NONE
        val hasLoop = task.flow.prediction != null
        val names = task.inputs.pictures.keys + task.inputs.tensors.keys
        return Request(
            prompt = golden.prompt.takeIf { takesPrompt },
            negativePrompt = golden.negativePrompt.takeIf { isGuided },
            tensors = names.associateWith { ofLoop("request/$it") },
            steps = golden.steps.takeIf { hasLoop },
            strength = golden.strength.takeIf { hasLoop && task.flow.start != null },
            noise = if (hasLoop) Noise.Values(ofLoop("noise").data) else Noise.Seed(0),
        )
    }

    private fun ofLoop(name: String) = floats("loop/${task.name}/$name")

    private fun floats(name: String) = underRule(10, GOLDENS) { goldens.floats(name) }

    private fun tensor(name: String) = underRule(10, GOLDENS) { goldens.read(name) }

    private fun record(part: String, task: String, vararg stages: String): ProofEntry =
        manifest.proof.firstOrNull { it.part == part && it.task == task && it.stage in stages }
            ?: throw MtuException.BundleRefused(
                0,
                "$MANIFEST: proof",
                "there is no entry of $part for task $task",
            )

    private companion object {
        private const val CASES = 3
    }
}
