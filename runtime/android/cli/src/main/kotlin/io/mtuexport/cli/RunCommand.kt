package io.mtuexport.cli

import io.mtuexport.core.Event
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Pipeline
import io.mtuexport.core.Request
import io.mtuexport.core.TaskInfo
import java.io.File
import java.io.PrintStream
import kotlinx.coroutines.runBlocking

/** `run`: a bundle makes a picture. */
internal object RunCommand :
    Command(
        "run",
        "BUNDLE -o FILE [FLAGS]",
        "Make a picture with a bundle.\n" +
            "Pictures of files are rotated upright and cropped to the bundle's size.",
        RunFlags.ALL,
    ) {
    private const val MOST_QUOTED = 80

    override fun run(words: Words, out: PrintStream, err: PrintStream): Int {
        val asked = Asked.of(words)
        val folder = File(only(words, "BUNDLE"))
        val output =
            File(words.text(RunFlags.OUTPUT) ?: throw Refusal("Missing option '-o' / '--output'."))
        PictureFiles.checkSuffix(output)
        requireWritable(output, words.has(FORCE))
        val bundle = openBundle(folder)
        val task = chosen(bundle, folder, asked.task)
        val engine = Engines.of(bundle.target, words)
        val warn = { line: String -> err.println("warning: ${plain(line)}") }
        val request = Requests(task, asked, warn).request()
        Pipeline.open(bundle, engine.runtime, task.name).use { pipeline ->
            warnOfCut(pipeline, asked.prompt, warn)
            val start = System.nanoTime()
            val finished = picture(pipeline, request, if (words.has(VERBOSE)) err else null)
            PictureFiles.write(finished.picture, output)
            val seconds = (System.nanoTime() - start) / 1e9
            val table = asked.table(task)
            val passes = table?.let(task::passes) ?: 0
            val document =
                linkedMapOf(
                    "picture" to output.path,
                    "bundle" to folder.path,
                    "task" to task.name,
                    "steps" to table?.steps,
                    "passes" to passes,
                    "seconds" to Math.round(seconds * 100) / 100.0,
                    "runner" to engine.name,
                )
            if (table == null) document.remove("steps")
            val steps = if (table == null) "" else "${table.steps} steps, "
            out.println(
                if (words.has(JSON)) json(document)
                else "${output.path}: ${task.name}, $steps${fixed(seconds, 1)} s, ${engine.name}"
            )
        }
        return 0
    }

    private fun chosen(bundle: ModelBundle, folder: File, name: String?): TaskInfo {
        val names = bundle.tasks.map(TaskInfo::name)
        if (name == null && names.size > 1) {
            throw Refusal("name a --task; this bundle has: ${names.joinToString(", ")}")
        }
        val task =
            if (name == null) bundle.tasks.first() else bundle.tasks.firstOrNull { it.name == name }
        if (task == null) throw unknown("task", name.orEmpty(), names)
        if (task.missing.isNotEmpty()) {
            val parts = task.missing.joinToString(", ")
            throw Refusal("$folder has no $parts: task ${quoted(task.name)} needs it", BUNDLE)
        }
        return task
    }

    private fun warnOfCut(pipeline: Pipeline, prompt: String?, warn: (String) -> Unit) {
        val cut = if (prompt == null) "" else pipeline.cut(prompt)
        if (cut.isEmpty()) return
        val shown = quoted(cut.take(MOST_QUOTED)) + if (cut.length > MOST_QUOTED) " ..." else ""
        warn("the prompt is longer than the text encoder reads; left out: $shown")
    }

    private fun picture(pipeline: Pipeline, request: Request, log: PrintStream?): Event.Finished {
        var finished: Event.Finished? = null
        runBlocking {
            pipeline.generate(request).collect { event ->
                when (event) {
                    is Event.Loading -> log?.println("loading ${plain(event.part)}")
                    is Event.Passed -> log?.println("pass ${event.number} of ${event.of}")
                    is Event.Finished -> finished = event
                }
            }
        }
        return checkNotNull(finished)
    }
}

/**
 * Opens a bundle, all of whose files are read; the line of a folder that is none is `mtu-export`'s.
 */
internal fun openBundle(folder: File): ModelBundle {
    if (!File(folder, "manifest.json").isFile)
        throw Refusal("${quoted(folder.path.ifEmpty { "." })} is not a bundle: no manifest.json", BUNDLE)
    return ModelBundle.open(folder)
}
