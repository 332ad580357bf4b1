package io.mtuexport.executorch

import io.mtuexport.core.LoadedPart
import io.mtuexport.core.PartRuntime
import io.mtuexport.core.PartSession
import io.mtuexport.core.Target
import java.util.concurrent.atomic.AtomicInteger

/**
 * Runs `.pte` bundles by ExecuTorch, with XNNPACK.
 *
 * Apps add `org.pytorch:executorch-android` of [COMPILED_AGAINST] or newer beside this module;
 * Linux desktops take `mtu-executorch-jvm` in its place. Files are mapped into memory, a session is
 * one method of one file, and what a method gives is copied before its session runs again. A method
 * that runs cannot be interrupted: a cancelled picture ends after the pass.
 *
 * @param threads Threads of the pool that ExecuTorch has once in a process; 0 leaves its own
 *   choice. The first session of the process sets it.
 * @throws IllegalArgumentException Of a negative number, and where another number has been set
 *   before.
 */
public class ExecuTorchRuntime(private val threads: Int = 0) : PartRuntime {
    init {
        require(threads >= 0) { "$threads threads; 0 or more are legal" }
        val before = POOL.get()
        require(threads == 0 || before == 0 || before == threads) {
            "ExecuTorch's one pool of threads has been set to $before; $threads are not possible"
        }
    }

    /** [Target.EXECUTORCH]. */
    override val target: Target
        get() = Target.EXECUTORCH

    /** Maps the file and loads the method of [part]. */
    override fun open(part: LoadedPart): PartSession =
        try {
            Modules.open(part, newThreads())
        } catch (error: LinkageError) {
            throw missing(
                "its classes or its library for this device cannot be loaded: $error",
                error,
            )
        }

    // The pool is made once: making it again while a method runs elsewhere would be its end.
    private fun newThreads(): Int =
        if (threads > 0 && POOL.compareAndSet(0, threads)) threads else 0

    /** Versions. */
    public companion object {
        /** The version of ExecuTorch whose interface this module is compiled against. */
        public const val COMPILED_AGAINST: String = "1.5.1"

        // What the pool of this process was set to, 0 before.
        private val POOL = AtomicInteger(0)
    }
}
