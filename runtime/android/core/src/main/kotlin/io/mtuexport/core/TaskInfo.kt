package io.mtuexport.core

/**
 * What a table of the loop is chosen by.
 *
 * @property steps The step count.
 * @property strength Null of a task whose loop starts from noise alone.
 */
public data class TableKey(public val steps: Int, public val strength: Double?)

/** What one task of a bundle takes, for a form that asks for it. */
public class TaskInfo internal constructor(private val manifest: Manifest, task: Task) {
    private val tables = tablesOf(manifest, task)

    /** Its name in the bundle. */
    public val name: String = task.name

    /** Kind and default scales. */
    public val guidance: Guidance = task.guidance

    /** The default step count; without meaning where [allowed] is empty. */
    public val steps: Int = task.steps

    /** The default strength; null where the loop does not start from a picture. */
    public val strength: Double? = task.strength

    /** The pairs that a request may choose; empty of a task without a loop. */
    public val allowed: List<TableKey> = tables.map { TableKey(it.steps, it.strength) }

    /** Whether a request has a prompt: one that does needs it, one that does not refuses it. */
    public val takesPrompt: Boolean = promptedCalls(task).isNotEmpty()

    /** Whether a request may have a negative prompt. */
    public val takesNegativePrompt: Boolean = takesPrompt && task.guidance.kind != GuidanceKind.NONE

    /** The prompt of which the bundle's constants were made; null where there is none. */
    public val fixedPrompt: String? = task.prompt

    /** Pictures and masks by name; a request has all of them. */
    public val pictures: Map<String, PictureKind> = task.inputs.pictures.mapValues { it.value.kind }

    /** Shapes of tensors by name; a request has all of them. */
    public val tensors: Map<String, IntArray> = task.inputs.tensors.mapValues { it.value.copyOf() }

    /** Numbers by name; those that a request does not name are their default. */
    public val numbers: Map<String, NumberRange> = task.inputs.numbers

    /** Parts that the task calls and the bundle has not; it runs only where there are none. */
    public val missing: List<String> = missingParts(manifest, task)

    /**
     * Passes of one of [allowed]: of some tables more or fewer than its steps.
     *
     * @throws NoSuchElementException for another table.
     */
    public fun passes(table: TableKey): Int = scheduleOf(table).passes.size

    /**
     * Shape of the noise that one of [allowed] uses: [1, C, h, w], or [1 + passes, C, h, w] where
     * the passes draw too.
     *
     * @throws NoSuchElementException for another table.
     */
    public fun noiseShape(table: TableKey): IntArray =
        latentShape(manifest).also { it[0] = 1 + scheduleOf(table).draws }

    private fun scheduleOf(table: TableKey) =
        tables.first { it.steps == table.steps && it.strength == table.strength }
}

/** The tables that a task's loop can follow. */
internal fun tablesOf(manifest: Manifest, task: Task): List<Schedule> {
    if (task.flow.prediction == null) return emptyList()
    return manifest.schedules.filter { (it.strength != null) == (task.flow.start != null) }
}
