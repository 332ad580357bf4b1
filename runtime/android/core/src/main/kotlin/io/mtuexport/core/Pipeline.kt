package io.mtuexport.core

import java.io.Closeable
import kotlin.time.Duration
import kotlin.time.TimeSource
import kotlinx.coroutines.channels.BufferOverflow
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow

/** How a [Pipeline] works. */
public class PipelineOptions
@JvmOverloads
constructor(
    /** What stays loaded. */
    public val memory: Memory = Memory.LEAST,
    /** Whether [Event.Passed] has a copy of the latent, for a preview of the caller's. */
    public val latents: Boolean = false,
)

/**
 * One task of a bundle in a runtime.
 *
 * Parts are loaded and run on one thread of its own, and one picture is made at a time; every
 * method may be called from any thread. What is loaded when no picture is being made: nothing under
 * [Memory.LEAST], also after an error or a cancellation; denoisers under [Memory.UNET]; every part
 * that was used under [Memory.ALL]. After [MtuException.OutOfMemory] nothing is.
 *
 * Close it: the thread and native memory live until then.
 */
public class Pipeline
private constructor(
    private val bundle: ModelBundle,
    private val record: Task,
    runtime: PartRuntime,
    private val options: PipelineOptions,
) : Closeable {
    private val manifest = bundle.manifest
    private val parts =
        record.flow.calls.map { it.part }.distinct().map { checkNotNull(bundle.part(it)) }
    private val sessions = Sessions(bundle, runtime, record, options.memory)
    private val worker = Worker()

    /** The task that it serves. */
    public val task: TaskInfo = bundle.tasks.first { it.name == record.name }

    /**
     * The picture of a request. Cold: each collection makes one, and waits until no other is being
     * made. The last event is [Event.Finished]; it is never lost, while of the others a slow
     * collector sees the newest alone and never slows the loop down.
     *
     * Cancelling the collection ends it at once where the runtime can interrupt a part, otherwise
     * after the part that runs; only then does the next picture begin.
     *
     * Collecting throws [MtuException.RequestRefused] before anything is loaded,
     * [MtuException.PartFailed], [MtuException.NotFinite], [MtuException.OutOfMemory],
     * [MtuException.RuntimeMissing], [MtuException.BundleRefused] for a file that has changed since
     * it was opened, and [IllegalStateException] after [close].
     */
    public fun generate(request: Request): Flow<Event> =
        channelFlow {
                send(alone { turn -> Making(turn) { event -> trySend(event) }.picture(request) })
            }
            .buffer(1, BufferOverflow.DROP_OLDEST)

    /**
     * Loads every part once, and lets go of it as [PipelineOptions.memory] says: what the first
     * picture would wait for where a runtime compiles or packs weights.
     *
     * @return how long each part took, by its name; 0 where it was loaded already.
     * @throws MtuException as [generate] does.
     */
    public suspend fun prewarm(): Map<String, Duration> = alone { turn ->
        val making = Making(turn)
        parts.forEach { making.session(it, record.name) }
        parts.associate { it.name to (making.clock.load[it.name] ?: Duration.ZERO) }
    }

    /**
     * The check on first start: what the parts and the loop of this task reach on this device,
     * against the goldens of the bundle and the floors of its `proof`.
     *
     * @param parts Whether each part is run on its three cases.
     * @param loop Whether the loop is: each pass on its own, and the whole as a figure.
     * @return a verdict for each part; then `passes` and the figure `loop`, where there are
     *   goldens.
     * @throws MtuException as [generate] does, and [MtuException.RequestRefused] for a bundle
     *   without goldens.
     */
    @JvmOverloads
    public suspend fun verify(parts: Boolean = true, loop: Boolean = true): List<Verdict> =
        alone { turn ->
            val proof =
                Proof(manifest, record, bundle.goldens ?: refuse("the bundle has no goldens"))
            val making = Making(turn)
            val tested = if (parts) this.parts else emptyList()
            val ofParts =
                tested.map { part ->
                    proof.ofPart(part) { task, inputs -> making.run(part, task, inputs) }
                }
            ofParts + if (loop) proof.ofLoop(making::evaluation) else emptyList()
        }

    /**
     * What of a prompt no text encoder of this task reads; empty where it fits. Loads no part; the
     * first call reads the tokenizer, so not on the main thread.
     *
     * @throws MtuException.RequestRefused for half of a surrogate pair.
     * @throws MtuException.BundleRefused for a tokenizer that is not the contract's.
     */
    public fun cut(prompt: String): String {
        val sources = record.flow.calls.flatMap { it.inputs.values }.flatMap { it.sources }
        val cuts =
            sources
                .mapNotNull { it.tokenizer }
                .distinct()
                .map { bundle.tokenizer(it).encode(prompt).cut }
        return cuts.maxByOrNull { it.codePointCount(0, it.length) }.orEmpty()
    }

    /**
     * Lets go of every part, after the picture that is being made; the next one loads them again.
     */
    public suspend fun trim(): Unit = worker.run { sessions.releaseAll() }

    /**
     * Ends the picture that is being made, waits until the native call has returned, and frees all.
     * Blocks for that long: a pass where the runtime cannot interrupt one. A second call does
     * nothing more; collecting and other calls then throw [IllegalStateException].
     *
     * @throws MtuException.PartFailed for a runtime that cannot free a part.
     */
    override fun close(): Unit = worker.close(sessions::releaseAll)

    // ------------------------------------------------------------------------------------------

    /** [work] on the worker; afterwards only what stays is loaded, whatever has happened. */
    private suspend fun <T> alone(work: (Turn) -> T): T =
        worker.run { turn ->
            val result =
                try {
                    work(turn)
                } catch (error: OutOfMemoryError) {
                    throw letGo(
                        MtuException.OutOfMemory("task ${record.name}", 0, error),
                        sessions::releaseAll,
                    )
                } catch (error: MtuException.OutOfMemory) {
                    throw letGo(error, sessions::releaseAll)
                } catch (error: Throwable) { // the worker hands it on
                    throw letGo(error, sessions::settle)
                }
            sessions.settle()
            result
        }

    private fun letGo(error: Throwable, release: () -> Unit): Throwable {
        try {
            release()
        } catch (another: MtuException) {
            error.addSuppressed(another)
        }
        return error
    }

    /** The making of one picture or one proof. */
    private inner class Making(private val turn: Turn, private val tell: (Event) -> Unit = {}) :
        FlowSources {
        private val begin = TimeSource.Monotonic.markNow()
        private val constants = HashMap<String, Tensor.Floats>()
        val clock = Clock()

        fun picture(request: Request): Event.Finished {
            val prepared = Prepared.of(manifest, record, request)
            listOfNotNull(request.prompt, request.negativePrompt)
                .forEach(::cut) // refuses what no encoder reads
            val evaluation = evaluation(prepared)
            evaluation.runOnce()
            val latent =
                if (prepared.table == null || prepared.noise == null) null
                else {
                    Loop(prepared.table, prepared.noise, evaluation::denoise).run(
                        evaluation.start()
                    ) { index, x ->
                        tell(passed(index + 1, prepared.table.passes.size, x))
                    }
                }
            val picture = evaluation.picture(latent)
            if (!picture.isFinite()) throw MtuException.NotFinite(null)
            return Event.Finished(
                rgbOf(picture),
                picture,
                prepared.seed,
                Timings(begin.elapsedNow(), clock.load, clock.run),
            )
        }

        private fun passed(number: Int, of: Int, x: Tensor.Floats): Event {
            val latent =
                if (options.latents) Tensor.Floats(x.shape.copyOf(), x.data.copyOf()) else null
            return Event.Passed(number, of, begin.elapsedNow(), latent)
        }

        fun evaluation(prepared: Prepared): Evaluation =
            Evaluation(record, prepared, batchOf(manifest, record), this) { call, inputs ->
                run(partOf(call), record.name, inputs)
            }

        fun session(part: Part, task: String): PartSession =
            sessions.session(part, task, clock, turn) { tell(Event.Loading(part.name)) }

        /** Runs a part's entry for a task; checks what it gives. */
        fun run(part: Part, task: String, inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
            val session = session(part, task)
            val outputs =
                clock.measured(clock.run, part.name) {
                    try {
                        turn.run(session, inputs)
                    } catch (error: MtuException) {
                        throw error
                    } catch (stopped: Turn.Stopped) {
                        throw stopped
                    } catch (error: OutOfMemoryError) {
                        throw MtuException.OutOfMemory(part.name, part.weightBytes, error)
                    } catch (error: Exception) {
                        throw MtuException.PartFailed(part.name, Phase.RUN, reasonOf(error), error)
                    } catch (error: LinkageError) { // a name that a shrinker has removed
                        throw MtuException.PartFailed(part.name, Phase.RUN, reasonOf(error), error)
                    }
                }
            for (spec in part.outputs) {
                val shape = outputs[spec.name]?.shape
                if (shape.contentEquals(spec.shape)) continue
                val given = shape?.let { Tensor.shown(it) } ?: "missing"
                val reason =
                    "output ${quoted(spec.name)} must be ${Tensor.shown(spec.shape)}, it is $given"
                throw MtuException.PartFailed(part.name, Phase.RUN, reason)
            }
            return outputs
        }

        private fun partOf(call: Call) = parts.first { it.name == call.part }

        override fun inputsOf(call: Call) = partOf(call).inputsOf(record.name)

        override fun constant(name: String) = constants.getOrPut(name) { bundle.constant(name) }

        override fun tokens(tokenizer: String, text: String) =
            bundle.tokenizer(tokenizer).encode(text).ids
    }

    /** Opens pipelines. */
    public companion object {
        /**
         * A task of a bundle, to be run in a runtime. Loads nothing and blocks for nothing.
         *
         * @param task Its name; the bundle's only one where it is null.
         * @throws MtuException.RequestRefused for an unknown task, and for one whose parts are not
         *   all in the bundle.
         * @throws MtuException.RuntimeMissing for a runtime that is not of the bundle's target.
         */
        @JvmStatic
        @JvmOverloads
        public fun open(
            bundle: ModelBundle,
            runtime: PartRuntime,
            task: String? = null,
            options: PipelineOptions = PipelineOptions(),
        ): Pipeline {
            val record = bundle.task(task)
            val missing = missingParts(bundle.manifest, record)
            if (missing.isNotEmpty())
                refuse(
                    "task ${record.name} needs ${missing.joinToString(", ")}, which the bundle lacks"
                )
            if (runtime.target != bundle.target) {
                val artefact =
                    when (bundle.target) {
                        Target.ONNX -> "io.mtuexport:mtu-onnx"
                        Target.EXECUTORCH -> "io.mtuexport:mtu-executorch"
                        Target.COREML -> "an Apple device"
                    }
                throw MtuException.RuntimeMissing(
                    bundle.target,
                    artefact,
                    "the runtime that was handed in is for ${runtime.target.label}",
                )
            }
            return Pipeline(bundle, record, runtime, options)
        }
    }
}
