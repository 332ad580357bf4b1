package io.mtuexport.core

import kotlin.time.Duration
import kotlin.time.TimeSource

/** Where the time goes, by part. */
internal class Clock {
    val load = LinkedHashMap<String, Duration>()
    val run = LinkedHashMap<String, Duration>()

    inline fun <T> measured(into: MutableMap<String, Duration>, part: String, work: () -> T): T {
        val begin = TimeSource.Monotonic.markNow()
        val result = work()
        into[part] = (into[part] ?: Duration.ZERO) + begin.elapsedNow()
        return result
    }
}

/** The loaded parts of a pipeline, as [Memory] says. Used on its worker's thread alone. */
internal class Sessions(
    private val bundle: ModelBundle,
    private val runtime: PartRuntime,
    private val task: Task,
    private val memory: Memory,
) {
    private data class Key(val part: String, val entry: String)

    private val opened = LinkedHashMap<Key, PartSession>()
    private val ofPass =
        task.flow.calls
            .filter { it.stage == When.PASS || it.stage == When.GUIDED }
            .mapTo(HashSet()) { it.part }

    /**
     * The session of a part's entry for a task. Others are let go before one is loaded; those of a
     * pass stay together, as each pass needs them all.
     */
    fun session(
        part: Part,
        taskName: String,
        clock: Clock,
        turn: Turn,
        loading: () -> Unit,
    ): PartSession {
        val loaded = bundle.load(part, taskName)
        val key = Key(part.name, loaded.entry)
        opened[key]?.let {
            return it
        }
        turn.check()
        val together = if (part.name in ofPass) ofPass else emptySet()
        release { it in together || isKept(it) }
        loading()
        return clock.measured(clock.load, part.name) { open(loaded) }.also { opened[key] = it }
    }

    private fun open(part: LoadedPart): PartSession =
        try {
            runtime.open(part)
        } catch (error: MtuException) {
            throw error
        } catch (error: OutOfMemoryError) {
            throw MtuException.OutOfMemory(part.name, part.bytes, error)
        } catch (error: Exception) {
            throw MtuException.PartFailed(part.name, Phase.OPEN, reasonOf(error), error)
        } catch (error: LinkageError) {
            throw MtuException.PartFailed(part.name, Phase.OPEN, reasonOf(error), error)
        }

    private fun isKept(part: String) =
        when (memory) {
            Memory.LEAST -> false
            Memory.UNET -> bundle.part(part)?.kind == PartKind.DENOISER
            Memory.ALL -> true
        }

    /** Lets go of what does not stay between pictures. */
    fun settle() = release(::isKept)

    /** Lets go of all. */
    fun releaseAll() = release { false }

    /** Lets go of the parts that are not [kept], also where one of them fails to close. */
    private fun release(kept: (part: String) -> Boolean) {
        var failure: Exception? = null
        for ((key, session) in opened.filterKeys { !kept(it.part) }) {
            opened.remove(key)
            try {
                session.close()
            } catch (error: Exception) {
                val failed = MtuException.PartFailed(key.part, Phase.CLOSE, reasonOf(error), error)
                failure?.addSuppressed(failed) ?: run { failure = failed }
            }
        }
        failure?.let { throw it }
    }
}
