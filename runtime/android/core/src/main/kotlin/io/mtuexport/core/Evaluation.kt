package io.mtuexport.core

/** Runs a call's part: inputs by name → outputs by name. */
internal typealias RunCall = (call: Call, inputs: Map<String, Tensor>) -> Map<String, Tensor.Floats>

/** What a flow takes from beside the request. */
internal interface FlowSources {
    /** The input specs of the part of a call. */
    fun inputsOf(call: Call): List<TensorSpec>

    /** A constant that a flow names. */
    fun constant(name: String): Tensor.Floats

    /** The ids [1, length] of a text by the tokenizer of this folder. */
    fun tokens(tokenizer: String, text: String): Tensor.Ints
}

/** One request on its way through the flow of a task ("The flow" of the contract). */
internal class Evaluation(
    private val task: Task,
    private val request: Prepared,
    private val batch: Int,
    private val sources: FlowSources,
    private val run: RunCall,
) {
    /** Where a source is asked: the branch, what the pass has, and earlier calls of this stage. */
    private class Point(
        val branch: Branch,
        val latent: Tensor.Floats? = null,
        val pass: Pass? = null,
        val guided: Tensor.Floats? = null,
        val outputs: Map<String, Map<String, Tensor.Floats>> = emptyMap(),
        val entry: Int = 0,
    )

    private val prompted = promptedCalls(task)
    private val branches = branchesOf(request.guidance)
    private val once = HashMap<String, Map<String, Tensor.Floats>>()
    private val onceNegative = HashMap<String, Map<String, Tensor.Floats>>()

    private fun calls(stage: When) = task.flow.calls.filter { it.stage == stage }

    /** Makes the calls before the loop, for the prompt and, where it matters, the negative one. */
    fun runOnce() {
        val isNegativeUsed = request.negativePrompt != null && branches.any { !it.text }
        for (call in calls(When.ONCE)) {
            once[call.id] = run(call, single(call, Point(Branch.PROMPT)))
            if (isNegativeUsed && call.id in prompted) {
                onceNegative[call.id] =
                    run(call, single(call, Point(Branch(text = false, image = true))))
            }
        }
    }

    /** What the loop begins from beside noise, [1, C, h, w]; null where it is noise alone. */
    fun start(): Tensor.Floats? =
        task.flow.start?.let { source(it, Point(Branch.PROMPT), IntArray(0)) as Tensor.Floats }

    /** The guided m of a pass; [latent] is input_scale · x. */
    fun denoise(latent: Tensor.Floats, pass: Pass): Tensor.Floats {
        val prediction = checkNotNull(task.flow.prediction) { "the task has no loop" }
        val predictions = ArrayList<Tensor.Floats>()
        for (chunk in branches.chunked(batch)) {
            val filled = List(batch) { chunk.getOrElse(it) { chunk.last() } }
            val outputs = HashMap<String, Map<String, Tensor.Floats>>()
            for (call in calls(When.PASS)) {
                val points =
                    filled.mapIndexed { entry, branch ->
                        Point(branch, latent, pass, outputs = outputs, entry = entry)
                    }
                outputs[call.id] = run(call, batched(call, points))
            }
            val output = outputs.getValue(prediction.call).getValue(prediction.name)
            chunk.indices.mapTo(predictions) { output.entry(it) }
        }
        val sum = guided(request.guidance, predictions)
        val refined = stage(When.GUIDED, latent, pass, sum)
        return task.flow.refined?.let { refined.getValue(it.call).getValue(it.name) } ?: sum
    }

    /** The result [1, 3, H, W], not clipped; [latent] is the last x, null without a loop. */
    fun picture(latent: Tensor.Floats?): Tensor.Floats {
        val (call, name) = task.flow.picture
        val outputs = stage(When.END, latent)
        return (outputs[call] ?: once.getValue(call)).getValue(name)
    }

    /** Makes the calls of a stage of batch 1. */
    private fun stage(
        stage: When,
        latent: Tensor.Floats?,
        pass: Pass? = null,
        guided: Tensor.Floats? = null,
    ): Map<String, Map<String, Tensor.Floats>> {
        val outputs = HashMap<String, Map<String, Tensor.Floats>>()
        for (call in calls(stage)) {
            outputs[call.id] =
                run(call, single(call, Point(Branch.PROMPT, latent, pass, guided, outputs)))
        }
        return outputs
    }

    // ------------------------------------------------------------------------------------- values

    private fun single(call: Call, point: Point) = batched(call, listOf(point))

    /** The inputs of a call: an entry for each point, or one value for all. */
    private fun batched(call: Call, points: List<Point>): Map<String, Tensor> =
        sources.inputsOf(call).associate { spec ->
            val entries = if (spec.shape[0] == points.size) points else points.take(1)
            val one = spec.shape.copyOf().also { it[0] = 1 }
            spec.name to joined(entries.map { value(call.inputs.getValue(spec.name), it, one) }, 0)
        }

    private fun value(value: Value, point: Point, shape: IntArray): Tensor {
        if (value.empty != null && !point.branch.text && request.negativePrompt == null) {
            return sources.constant(value.empty)
        }
        return joined(value.sources.map { source(it, point, shape) }, value.axis ?: 0)
    }

    /** [shape] is that of the input, for what fills it. */
    private fun source(source: Source, point: Point, shape: IntArray): Tensor {
        if (source.kind == SourceKind.TOKENS) {
            val text = if (point.branch.text) request.prompt else request.negativePrompt
            return sources.tokens(source.tokenizer.orEmpty(), text.orEmpty())
        }
        val tensor = floats(source, point, shape)
        val isShown =
            when (source.only) {
                null -> true
                Only.PROMPT -> point.branch.text
                Only.IMAGE -> point.branch.image
            }
        return when {
            !isShown -> filled(tensor.shape, 0f)
            source.multiply != null -> tensor.times(source.multiply)
            source.divide != null -> tensor.dividedBy(source.divide)
            else -> tensor
        }
    }

    private fun floats(source: Source, point: Point, shape: IntArray): Tensor.Floats {
        val name = source.name.orEmpty()
        return when (source.kind) {
            SourceKind.LATENT -> checkNotNull(point.latent)
            SourceKind.GUIDED -> checkNotNull(point.guided)
            SourceKind.COLUMN -> column(checkNotNull(point.pass), name, shape)
            SourceKind.NUMBER -> filled(shape, request.numbers.getValue(name).toFloat())
            SourceKind.CONSTANT -> sources.constant(name)
            SourceKind.PICTURE -> picture(source, name)
            SourceKind.TENSOR -> request.tensors.getValue(name)
            SourceKind.OUTPUT -> output(source.call.orEmpty(), name, point)
            SourceKind.TOKENS -> error("tokens are no floats")
        }
    }

    private fun column(pass: Pass, name: String, shape: IntArray): Tensor.Floats {
        val numbers = pass.columns.getValue(name)
        if (name in pass.scalars) return filled(shape, numbers[0].toFloat())
        return Tensor.Floats(
            intArrayOf(1, numbers.size),
            FloatArray(numbers.size) { numbers[it].toFloat() },
        )
    }

    private fun output(call: String, name: String, point: Point): Tensor.Floats {
        val local = point.outputs[call]?.getValue(name)
        if (local != null) return if (local.shape[0] == 1) local else local.entry(point.entry)
        val isNegative = !point.branch.text && request.negativePrompt != null && call in prompted
        return (if (isNegative) onceNegative else once).getValue(call).getValue(name)
    }

    private fun picture(source: Source, name: String): Tensor.Floats {
        val whole = request.pictures.getValue(name)
        val shown = source.outside?.let { outside(whole, request.pictures.getValue(it)) } ?: whole
        return when {
            source.every != null -> everyPixel(shown, source.every)
            source.mean != null -> cellMeans(shown, source.mean)
            else -> shown
        }
    }
}

/** picture · (mask < 0.5). */
private fun outside(picture: Tensor.Floats, mask: Tensor.Floats): Tensor.Floats {
    val count = mask.data.size
    return Tensor.Floats(
        picture.shape,
        FloatArray(picture.data.size) {
            picture.data[it] * if (mask.data[it % count] < 0.5f) 1f else 0f
        },
    )
}

/** Each n-th pixel in both directions, beginning with the first. */
private fun everyPixel(picture: Tensor.Floats, n: Int) =
    cells(picture, n) { from, _ -> picture.data[from] }

/** The mean of each cell of n x n pixels, formed in float64. */
private fun cellMeans(picture: Tensor.Floats, n: Int) =
    cells(picture, n) { from, width ->
        var sum = 0.0
        for (y in 0 until n) for (x in 0 until n) sum += picture.data[from + y * width + x]
        (sum / (n * n)).toFloat()
    }

/** A number of each cell, by the place of its first pixel and the width of the picture. */
private inline fun cells(
    picture: Tensor.Floats,
    n: Int,
    number: (from: Int, width: Int) -> Float,
): Tensor.Floats {
    val (channels, height, width) = picture.shape.drop(1)
    val shape = intArrayOf(1, channels, height / n, width / n)
    val data = FloatArray(countOf(shape))
    var at = 0
    for (top in 0 until channels * height step n) {
        for (left in 0 until width step n) data[at++] = number(top * width + left, width)
    }
    return Tensor.Floats(shape, data)
}
