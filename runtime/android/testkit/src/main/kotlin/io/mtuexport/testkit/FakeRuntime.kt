package io.mtuexport.testkit

import io.mtuexport.core.ElementType
import io.mtuexport.core.LoadedPart
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Phase
import io.mtuexport.core.Target
import io.mtuexport.core.Tensor
import io.mtuexport.core.TensorSpec
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/**
 * A runtime for tests: its parts are formulas ([ClosedForm]), it counts what is opened, run and
 * closed, and it fails, blocks or gives NaN where a test says so. It opens no file.
 *
 * @property target The bundles that it runs.
 */
public class FakeRuntime(override val target: Target = Target.ONNX) : PartRuntime {
    private class Order(
        val part: String,
        val phase: Phase,
        val number: Int,
        val act: (Session?) -> Unit,
    )

    private val lock = Any()
    private val orders = ArrayList<Order>()
    private val events = ArrayList<String>()
    private val misuses = ArrayList<String>()
    private val opened = ArrayList<Session>()
    private var most = 0

    /** What has happened: `open unet`, `run unet`, `close unet`, in order. */
    public val log: List<String>
        get() = synchronized(lock) { events.toList() }

    /** Names of the parts that are open. */
    public val openParts: List<String>
        get() = synchronized(lock) { opened.map { it.part.name } }

    /** The largest number of parts that were open at once. */
    public val mostOpen: Int
        get() = synchronized(lock) { most }

    /** What no pipeline may do: a run after or during a close, two runs at once, a second close. */
    public val misuse: List<String>
        get() = synchronized(lock) { misuses.toList() }

    /** How often something has happened to a part, as [log] writes it: `count("run unet")`. */
    public fun count(event: String): Int = synchronized(lock) { events.count { it == event } }

    /** Throws [error] when a part is opened, run or closed for the [number]-th time, from 1. */
    public fun failOn(part: String, phase: Phase, number: Int = 1, error: () -> Throwable) {
        order(part, phase, number) { throw error() }
    }

    /** Gives NaN as the first number of each output of the [number]-th run of a part, from 1. */
    public fun giveNaN(part: String, number: Int = 1) {
        order(part, Phase.RUN, number) { it?.givesNaN = true }
    }

    /**
     * Holds the [number]-th run of a part, from 1, until it is released or interrupted.
     *
     * @param obeys Whether an interruption ends it: not every runtime has one.
     * @param ignored How many interruptions it misses before, as one that comes too early is.
     */
    public fun hold(part: String, number: Int = 1, obeys: Boolean = true, ignored: Int = 0): Hold {
        val hold = Hold(obeys, ignored)
        order(part, Phase.RUN, number) { session ->
            session?.hold = hold
            hold.enter()
        }
        return hold
    }

    private fun order(part: String, phase: Phase, number: Int, act: (Session?) -> Unit) {
        synchronized(lock) { orders += Order(part, phase, number, act) }
    }

    override fun open(part: LoadedPart): PartSession {
        happened(part.name, Phase.OPEN, null)
        return Session(part).also {
            synchronized(lock) {
                opened += it
                most = maxOf(most, opened.size)
            }
        }
    }

    /** Notes an event, then does what was ordered for it. */
    private fun happened(part: String, phase: Phase, session: Session?) {
        val event = "${phase.name.lowercase()} $part"
        val due =
            synchronized(lock) {
                events += event
                val number = events.count { it == event }
                orders.filter { it.part == part && it.phase == phase && it.number == number }
            }
        due.forEach { it.act(session) }
    }

    /** Small enough that tanh tells inputs apart: ids and timesteps are numbers of thousands. */
    private fun weightOf(input: TensorSpec): Double {
        val isLarge = input.type == ElementType.INT32 || Tensor.elements(input.shape) == 1L
        return (if (isLarge) LARGE_INPUT else 1.0) / Tensor.elements(input.shape)
    }

    private inner class Session(val part: LoadedPart) : PartSession {
        private val formula = ClosedForm(part.inputs, part.outputs, part.inputs.map(::weightOf))
        private var isRunning = false
        private var isClosed = false
        var givesNaN = false

        @Volatile var hold: Hold? = null

        override fun run(inputs: Map<String, Tensor>): Map<String, Tensor.Floats> {
            synchronized(lock) {
                if (isClosed) misuses += "${part.name} is run after it was closed"
                if (isRunning) misuses += "${part.name} is run twice at once"
                isRunning = true
            }
            try {
                happened(part.name, Phase.RUN, this)
                val outputs = formula.run(inputs)
                if (givesNaN) outputs.values.forEach { it.data[0] = Float.NaN }
                return outputs
            } finally {
                hold = null
                givesNaN = false
                synchronized(lock) { isRunning = false }
            }
        }

        override fun interrupt() {
            hold?.interrupt()
        }

        override fun close() {
            synchronized(lock) {
                if (isRunning) misuses += "${part.name} is closed while it runs"
                if (isClosed) misuses += "${part.name} is closed twice"
                isClosed = true
                opened -= this
            }
            happened(part.name, Phase.CLOSE, this)
        }
    }

    private companion object {
        private const val LARGE_INPUT = 0.001
    }
}

/** A run that waits. Every wait of a test ends after a minute with an [IllegalStateException]. */
public class Hold internal constructor(private val obeys: Boolean, ignored: Int) {
    private val entered = CountDownLatch(1)
    private val ended = CountDownLatch(1)
    private val asked = CountDownLatch(1 + ignored)

    /** Whether the run was interrupted, so often that it noticed. */
    public val isInterrupted: Boolean
        get() = asked.count == 0L

    /** Waits until the run has begun. */
    public fun awaitEntered(): Unit = await(entered, "the run has not begun")

    /** Waits until the run was interrupted. */
    public fun awaitInterrupted(): Unit = await(asked, "the run was not interrupted")

    /** Lets the run go on. */
    public fun release(): Unit = ended.countDown()

    internal fun enter() {
        entered.countDown()
        await(ended, "the run was not released")
        if (obeys && isInterrupted) throw IllegalStateException("interrupted")
    }

    internal fun interrupt() {
        asked.countDown()
        if (obeys && isInterrupted) ended.countDown()
    }

    private fun await(latch: CountDownLatch, what: String) {
        check(latch.await(1, TimeUnit.MINUTES)) { what }
    }
}
