package io.mtuexport.core

// Rule 11: the flow of a task is in order and complete.

private val LEGAL = mapOf(
    SourceKind.LATENT to setOf(When.PASS, When.GUIDED, When.END),
    SourceKind.COLUMN to setOf(When.PASS, When.GUIDED),
    SourceKind.TOKENS to setOf(When.ONCE),
    SourceKind.GUIDED to setOf(When.GUIDED),
)

/** The call of this id; throws [Damaged] where there is none. */
internal fun callOf(task: Task, id: String): Call =
    task.flow.calls.firstOrNull { it.id == id }
        ?: throw Damaged(whereOf(task), "no call ${quoted(id)}")

/** The spec of a call's output; null where its part was not exported. */
internal fun outputSpec(manifest: Manifest, task: Task, output: OutputName): TensorSpec? {
    val call = callOf(task, output.call)
    val part = manifest.parts.firstOrNull { it.name == call.part } ?: return null
    return part.outputs.firstOrNull { it.name == output.name }
        ?: throw Damaged(whereOf(task), "${part.name} has no output ${quoted(output.name)}")
}

/** The output that a source of the kind `output` takes. */
internal fun outputOf(source: Source) = OutputName(source.call.orEmpty(), source.name.orEmpty())

/** Ids of the once calls whose outputs depend on the prompt. */
internal fun promptedCalls(task: Task): Set<String> {
    val prompted = LinkedHashSet<String>()
    for (call in task.flow.calls.filter { it.stage == When.ONCE }) {
        val sources = call.inputs.values.flatMap { it.sources }
        if (sources.any { it.kind == SourceKind.TOKENS || it.call in prompted }) prompted += call.id
    }
    return prompted
}

/** Rule 11 of one task. */
internal fun checkFlow(manifest: Manifest, task: Task) = FlowRules(manifest, task).check()

private fun whereOf(task: Task) = "$MANIFEST: task ${task.name}"

private class FlowRules(private val manifest: Manifest, private val task: Task) {
    private val flow = task.flow
    private val where = whereOf(task)

    fun check() {
        val before = LinkedHashMap<String, Call>()
        var stage = When.ONCE
        for (call in flow.calls) {
            refuseUnless(call.stage >= stage, "$where: call ${call.id}") { "it is out of order" }
            stage = call.stage
            checkCall(call, before)
            before[call.id] = call
        }
        for ((name, number) in task.inputs.numbers) {
            refuseUnless(number.default in number.minimum..number.maximum, "$where: number $name") {
                "default is not between minimum and maximum"
            }
        }
        checkResults(before)
        checkLoop()
        checkStart(before)
    }

    private fun checkCall(call: Call, before: Map<String, Call>) {
        val at = "$where: call ${call.id}"
        val part = manifest.parts.firstOrNull { it.name == call.part }
        if (part != null) {
            val names = part.inputs.map { it.name }
            val missing = names.firstOrNull { it !in call.inputs }
            refuseUnless(missing == null, at) { "input ${quoted(missing)} has no value" }
            val foreign = call.inputs.keys.firstOrNull { it !in names }
            refuseUnless(foreign == null, at) { "${quoted(foreign)} is no input of ${part.name}" }
        }
        for ((name, value) in call.inputs) {
            val place = "$at: input ${quoted(name)}"
            refuseUnless((value.sources.size > 1) == (value.axis != null), place) {
                "an axis belongs to several sources"
            }
            refuseUnless(value.empty == null || call.stage == When.PASS, place) {
                "empty is for calls in a pass"
            }
            for (source in value.sources) {
                checkSource(source, call.stage, before, place)
                if (part != null && source.kind == SourceKind.TOKENS) checkTokenizer(source, place)
            }
        }
    }

    private fun checkTokenizer(source: Source, place: String) {
        refuseUnless(manifest.tokenizers.any { it.path == source.tokenizer }, place) {
            "${quoted(source.tokenizer)} is no tokenizer"
        }
    }

    private fun checkSource(source: Source, stage: When, before: Map<String, Call>, place: String) {
        val legal = LEGAL[source.kind]
        refuseUnless(legal == null || stage in legal, place) {
            "a call ${label(stage)} has no ${label(source.kind)}"
        }
        refuseUnless(source.only == null || stage == When.PASS, place) {
            "only is for calls in a pass"
        }
        refuseUnless(source.multiply == null || source.divide == null, place) {
            "multiply and divide"
        }
        val inputs = task.inputs
        when (source.kind) {
            SourceKind.PICTURE -> checkPicture(source, place)
            SourceKind.TENSOR -> requireTaken(source, inputs.tensors.keys, place)
            SourceKind.NUMBER -> requireTaken(source, inputs.numbers.keys, place)
            SourceKind.OUTPUT -> {
                val call = before[source.call]
                val isVisible = call != null && (call.stage == When.ONCE || call.stage == stage)
                refuseUnless(isVisible, place) {
                    "${quoted(source.call)} is no earlier call whose output it can take"
                }
                outputSpec(manifest, task, outputOf(source))
            }
            else -> {}
        }
    }

    private fun checkPicture(source: Source, place: String) {
        val pictures = task.inputs.pictures
        requireTaken(source, pictures.keys, place)
        val outside = source.outside
        refuseUnless(outside == null || pictures[outside]?.kind == PictureKind.MASK, place) {
            "the task takes no mask ${quoted(outside)}"
        }
        refuseUnless(source.every == null || source.mean == null, place) { "every and mean" }
    }

    private fun requireTaken(source: Source, names: Set<String>, place: String) {
        refuseUnless(source.name in names, place) {
            "the task takes no ${label(source.kind)} ${quoted(source.name)}"
        }
    }

    private fun checkResults(calls: Map<String, Call>) {
        val last = if (flow.prediction == null) When.ONCE else When.END
        val results = listOf(
            Triple("prediction", flow.prediction, When.PASS),
            Triple("refined", flow.refined, When.GUIDED),
            Triple("picture", flow.picture, last),
        )
        for ((key, output, stage) in results) {
            if (output == null) continue
            refuseUnless(calls[output.call]?.stage == stage, "$where: $key") {
                "${quoted(output.call)} is no call ${label(stage)}"
            }
            outputSpec(manifest, task, output)
        }
    }

    private fun checkLoop() {
        val hasLoop = flow.prediction != null
        val isPlain =
            flow.start == null && flow.refined == null && flow.calls.all { it.stage == When.ONCE }
        refuseUnless(hasLoop || isPlain, where) { "a loop without a prediction" }
        refuseUnless(hasLoop || task.guidance.kind == GuidanceKind.NONE, where) {
            "guidance without a loop"
        }
        val isGuided = flow.calls.any { it.stage == When.GUIDED }
        refuseUnless(isGuided == (flow.refined != null), where) {
            "refined and guided calls come together"
        }
    }

    private fun checkStart(calls: Map<String, Call>) {
        val start = flow.start
        refuseUnless((start != null) == (task.strength != null), where) {
            "start and strength come together"
        }
        if (start == null) return
        refuseUnless(start.kind !in listOf(SourceKind.TOKENS, SourceKind.NUMBER), "$where: start") {
            "${label(start.kind)} is no latent"
        }
        checkSource(start, When.ONCE, calls.filterValues { it.stage == When.ONCE }, "$where: start")
    }

    private fun label(constant: Enum<*>) = constant.name.lowercase(java.util.Locale.ROOT)
}
