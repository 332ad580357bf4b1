package io.mtuexport.core

import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeoutOrNull

/**
 * The thread on which a pipeline loads and runs its parts, one piece of work after the other.
 *
 * Blocking runtimes stay off the caller's dispatchers, and native code sees one thread alone.
 */
internal class Worker {
    private val lock = Any()
    private val slot = Mutex()

    @Volatile private var thread: Thread? = null
    private val executor =
        Executors.newSingleThreadExecutor { work ->
            Thread(work, "mtu-pipeline").also {
                it.isDaemon = true
                thread = it
            }
        }
    private var current: Turn? = null
    private var isClosed = false
    private var failure: Throwable? = null

    /**
     * What [work] returns. It waits its turn; where the caller is cancelled, the turn is stopped,
     * and the next one begins only when the work, and so the native call, has returned.
     *
     * @throws IllegalStateException after [close].
     */
    suspend fun <T> run(work: (Turn) -> T): T =
        slot.withLock {
            val turn = Turn()
            val result = CompletableDeferred<T>()
            begin(turn) {
                try {
                    result.complete(work(turn))
                } catch (error: Throwable) { // all of it is the caller's
                    result.completeExceptionally(error)
                }
            }
            try {
                result.await()
            } catch (stopped: Turn.Stopped) {
                throw IllegalStateException(CLOSED, stopped)
            } catch (cancelled: CancellationException) {
                withContext(NonCancellable) {
                    do turn.stop() while (withTimeoutOrNull(AGAIN_MS) { result.join() } == null)
                }
                throw cancelled
            }
        }

    private fun begin(turn: Turn, work: () -> Unit) =
        synchronized(lock) {
            check(!isClosed) { CLOSED }
            current = turn
            executor.execute(work)
        }

    /**
     * Stops what runs, waits for it and then calls [free] on the thread; a second call only waits.
     * On the thread itself it waits for nothing.
     */
    fun close(free: () -> Unit) {
        synchronized(lock) {
            if (!isClosed) {
                isClosed = true
                executor.execute {
                    try {
                        free()
                    } catch (error: Throwable) { // rethrown below
                        failure = error
                    }
                }
                executor.shutdown()
            }
        }
        synchronized(lock) { current }?.stop()
        if (Thread.currentThread() === thread) return
        waitUntilFree()
        synchronized(lock) { failure.also { failure = null } }?.let { throw it }
    }

    private fun waitUntilFree() {
        var isInterrupted = false
        while (true) {
            synchronized(lock) { current }?.stop()
            try {
                if (executor.awaitTermination(AGAIN_MS, TimeUnit.MILLISECONDS)) break
            } catch (_: InterruptedException) {
                isInterrupted = true
            }
        }
        if (isInterrupted) Thread.currentThread().interrupt()
    }

    private companion object {
        private const val CLOSED = "the pipeline is closed"

        /** A part that has just begun to run may miss the first interruption. */
        private const val AGAIN_MS = 20L
    }
}

/** One piece of work on the [Worker], and what stops it. */
internal class Turn {
    /** Ends the work; nobody but the [Worker] sees it. */
    class Stopped : Exception("stopped")

    private val lock = Any()
    private var isStopped = false
    private var running: PartSession? = null

    /** Throws [Stopped] once [stop] was called. */
    fun check() = synchronized(lock) { if (isStopped) throw Stopped() }

    /** The outputs of a part; [Stopped] stands for whatever it throws once it was stopped. */
    fun run(session: PartSession, inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
        synchronized(lock) {
            check()
            running = session
        }
        val outputs =
            try {
                session.run(inputs)
            } catch (error: Exception) {
                check()
                throw error
            } finally {
                synchronized(lock) { running = null }
            }
        check()
        return outputs
    }

    /** From any thread, as often as one likes. */
    fun stop() =
        synchronized(lock) {
            isStopped = true
            running?.interrupt()
            Unit
        }
}
