package io.mtuexport.core

// Guidance and the loop over a table: "Guidance" and "The loop" of the contract.

/** What a branch of the guidance is shown. */
internal data class Branch(val text: Boolean, val image: Boolean) {
    companion object {
        val PROMPT = Branch(text = true, image = true)
    }
}

/** `NONE` where the scales turn guidance off, as in diffusers. */
private fun Guidance.effective(): Guidance {
    val byText = kind != GuidanceKind.NONE && (text ?: 0.0) <= 1
    val byImage = kind == GuidanceKind.TEXT_IMAGE && (image ?: 0.0) < 1
    return if (byText || byImage) Guidance(GuidanceKind.NONE) else this
}

/** The branches that a pass is asked for, in the order of the predictions. */
internal fun branchesOf(guidance: Guidance): List<Branch> =
    when (guidance.effective().kind) {
        GuidanceKind.NONE -> listOf(Branch.PROMPT)
        GuidanceKind.TEXT -> listOf(Branch(text = false, image = true), Branch.PROMPT)
        GuidanceKind.TEXT_IMAGE ->
            listOf(
                Branch(text = false, image = false),
                Branch(text = false, image = true),
                Branch.PROMPT,
            )
    }

/** The guided sum m of the predictions, formed in float64. */
internal fun guided(guidance: Guidance, predictions: List<Tensor.Floats>): Tensor.Floats {
    val effective = guidance.effective()
    val scales = listOfNotNull(effective.image, effective.text)
    val first = predictions.first()
    val data =
        FloatArray(first.data.size) { i ->
            var sum = first.data[i].toDouble()
            scales.forEachIndexed { k, scale ->
                sum += scale * (predictions[k + 1].data[i].toDouble() - predictions[k].data[i])
            }
            sum.toFloat()
        }
    return Tensor.Floats(first.shape, data)
}

/** n_1 to n_P where a pass draws noise, otherwise none: how many follow n_0. */
internal val Schedule.draws: Int
    get() = if (passes.any { it.noise != 0.0 }) passes.size else 0

/** x before a pass and the m that it gave. */
internal class State(val x: Tensor.Floats, val m: Tensor.Floats)

/** The loop over one table with its noise [1, C, h, w] or [1 + P, C, h, w]. */
internal class Loop(
    val table: Schedule,
    private val noise: Tensor.Floats,
    private val denoise: (latent: Tensor.Floats, pass: Pass) -> Tensor.Floats,
) {
    /** x before the first pass. */
    fun start(picture: Tensor.Floats?): Tensor.Floats {
        val first = noise.entry(0)
        val sum = Sum(first.shape)
        sum.add(table.startNoise.toFloat().toDouble(), first)
        if (picture != null) sum.add(table.startPicture.toFloat().toDouble(), picture)
        return sum.rounded()
    }

    /** The guided m of pass [index], from 0, at [x]. */
    fun ask(index: Int, x: Tensor.Floats): Tensor.Floats {
        val pass = table.passes[index]
        val m = denoise(x.times(pass.inputScale), pass)
        if (!m.isFinite()) throw MtuException.NotFinite(index + 1)
        return m
    }

    /** x after pass [index], from the states up to and with it, newest first. */
    fun advance(index: Int, states: List<State>): Tensor.Floats {
        val pass = table.passes[index]
        val sum = Sum(states.first().x.shape)
        states.take(HISTORY).forEachIndexed { k, state ->
            sum.add(pass.x[k], state.x)
            sum.add(pass.m[k], state.m)
        }
        if (pass.noise != 0.0) sum.add(pass.noise, noise.entry(index + 1))
        return sum.rounded()
    }

    /** The last x of the loop running free; [passed] is told of x after each pass, from 0. */
    fun run(
        picture: Tensor.Floats?,
        passed: (index: Int, x: Tensor.Floats) -> Unit = { _, _ -> },
    ): Tensor.Floats {
        var x = start(picture)
        var states = emptyList<State>()
        for (index in table.passes.indices) {
            states = listOf(State(x, ask(index, x))) + states.take(HISTORY - 1)
            x = advance(index, states)
            passed(index, x)
        }
        return x
    }

    private companion object {
        private const val HISTORY = 4
    }
}
