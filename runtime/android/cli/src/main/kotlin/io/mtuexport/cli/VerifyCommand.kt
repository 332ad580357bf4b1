package io.mtuexport.cli

import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.Pipeline
import io.mtuexport.core.Verdict
import java.io.File
import java.io.PrintStream
import kotlinx.coroutines.runBlocking

/** `verify`: bundles against their goldens. */
internal object VerifyCommand :
    Command(
        "verify",
        "BUNDLE... [FLAGS]",
        "Run bundles against their goldens; exit 1 below a floor.",
        listOf(VerifyFlags.FLOOR, Engines.SDK),
    ) {
    override fun run(words: Words, out: PrintStream, err: PrintStream): Int {
        val floor = words.number(VerifyFlags.FLOOR, 0, LARGEST_DB, " dB")
        val proofs = names(words, "BUNDLE").map { prove(File(it), floor, words, err) }
        if (words.has(JSON)) out.println(json(proofs.map(Proof::document))) else table(proofs, out)
        for (proof in proofs) {
            val failed = proof.verdicts.firstOrNull { it.passed == false } ?: continue
            throw Refusal("parity below the floor: ${failed.line(proof.runner)}", BELOW_FLOOR)
        }
        return 0
    }

    private fun prove(folder: File, floor: Double?, words: Words, err: PrintStream): Proof {
        val bundle = openBundle(folder)
        val engine = Engines.of(bundle.target, words)
        val (runnable, others) = bundle.tasks.partition { it.missing.isEmpty() }
        val lines = others.map { "task ${quoted(it.name)} needs ${it.missing.joinToString(", ")}" }
        if (runnable.isEmpty()) {
            val line = "${quoted(folder.path)} cannot be verified here: ${lines.joinToString("; ")}"
            throw Refusal("$line, which it has not", BUNDLE)
        }
        for (line in lines) err.println("warning: not verified: ${plain(line)}")
        val verdicts =
            runnable.flatMap { task ->
                if (words.has(VERBOSE))
                    err.println("verify ${plain(folder.path)}: ${plain(task.name)}")
                Pipeline.open(bundle, engine.runtime, task.name).use { pipeline ->
                    ofBundle { runBlocking { pipeline.verify() } }.map { Judged.of(it, floor) }
                }
            }
        return Proof(
            folder,
            bundle,
            engine.name,
            verdicts.distinctBy { Triple(it.part, it.task, it.stage) },
        )
    }

    private fun table(proofs: List<Proof>, out: PrintStream) {
        val head = listOf("bundle", "part", "task", "stage", "PSNR", "floor", "verdict", "runner")
        val lines =
            proofs.flatMap { proof ->
                proof.verdicts.map { listOf(proof.bundle.name) + it.cells(proof.runner) }
            }
        val all = (listOf(head) + lines).map { line -> line.map(::plain) }
        val widths = head.indices.map { column -> all.maxOf { it[column].length } }
        for (line in all) out.println(
            line.withIndex().joinToString("  ") { (at, cell) -> cell.padEnd(widths[at]) }.trimEnd()
        )
    }
}

/** The flags of `verify`. */
internal object VerifyFlags {
    val FLOOR =
        Flag(
            "--min-psnr",
            "Lowest accepted PSNR against PyTorch, in dB. Default: the bundle's own floors.",
            "DB",
        )
}

private const val LARGEST_DB = 300

/** What [work] returns; goldens that are missing are the bundle's fault, not the request's. */
internal inline fun <T> ofBundle(work: () -> T): T =
    try {
        work()
    } catch (error: MtuException.RequestRefused) {
        throw Refusal(error.message.orEmpty(), BUNDLE, error)
    }

/** A bundle's verdicts. */
private class Proof(
    val folder: File,
    val bundle: ModelBundle,
    val runner: String,
    val verdicts: List<Judged>,
) {
    fun document(): Map<String, Any?> =
        linkedMapOf("bundle" to folder.path, "proof" to verdicts.map { it.document(runner) })
}

/** A verdict with the floor that counts. */
private class Judged(
    val part: String,
    val task: String,
    val stage: String,
    private val psnrDb: Double,
    private val floorDb: Double,
    val passed: Boolean?,
    private val worst: String?,
) {
    private val isFinite = psnrDb != Double.NEGATIVE_INFINITY
    private val shownDb = Math.min(psnrDb, LARGEST_DB.toDouble())
    private val reason =
        when {
            passed != false -> null
            !isFinite -> "the output holds NaN or Inf or has another shape"
            else -> worst?.let { "the worst is $it" }
        }

    fun cells(runner: String): List<String> =
        listOf(
            part,
            task,
            stage,
            if (isFinite) "${fixed(shownDb, 1)} dB" else "none",
            if (passed == null) "" else "${brief(floorDb)} dB",
            when (passed) {
                true -> "passed"
                false -> "FAILED"
                null -> "figure"
            },
            runner,
        )

    fun line(runner: String): String {
        val figures =
            if (isFinite) listOf("${fixed(shownDb, 1)} dB, floor ${brief(floorDb)} dB")
            else emptyList()
        val why = (figures + listOfNotNull(reason)).joinToString("; ")
        return "$part of task ${quoted(task)} ($stage, $runner): $why"
    }

    fun document(runner: String): Map<String, Any?> =
        linkedMapOf(
            "part" to part,
            "task" to task,
            "stage" to stage,
            "psnr_db" to if (isFinite) Math.round(shownDb * 100) / 100.0 else null,
            "floor_db" to if (passed == null) 0.0 else floorDb,
            "runner" to runner,
            "passed" to passed,
            "reason" to reason,
        )

    companion object {
        private const val PASSES = "passes"

        /** The user's [floor] replaces that of a part, and lowers that of the passes. */
        fun of(verdict: Verdict, floor: Double?): Judged {
            val floorDb =
                when {
                    floor == null -> verdict.floorDb
                    verdict.stage == PASSES -> Math.min(verdict.floorDb, floor)
                    else -> floor
                }
            return Judged(
                verdict.part,
                verdict.task,
                verdict.stage,
                verdict.psnrDb,
                floorDb,
                passed = if (verdict.passed == null) null else verdict.psnrDb >= floorDb,
                worst =
                    if (verdict.outputs.size > 1) verdict.outputs.minByOrNull { it.value }?.key
                    else null,
            )
        }
    }
}
