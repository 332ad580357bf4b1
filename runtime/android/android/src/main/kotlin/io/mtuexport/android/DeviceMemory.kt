package io.mtuexport.android

import android.app.ActivityManager
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration
import io.mtuexport.core.Memory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.MtuException
import io.mtuexport.core.Pipeline
import java.util.Locale
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.launch

/** What the device's memory means for a bundle. */
public object DeviceMemory {
    /**
     * A line to show before a bundle is run where its weights are more than what is free, or null.
     * Advice alone: files are mapped, so it may work all the same, and the system may end an app
     * that has enough.
     */
    public fun advice(
        context: Context,
        bundle: ModelBundle,
        task: String,
        memory: Memory = Memory.LEAST,
    ): String? {
        val info = ActivityManager.MemoryInfo()
        (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(info)
        return adviceFor(bundle.weightBytes(task, memory), info.availMem, info.threshold, memory)
    }

    /**
     * Lets go of what [pipeline] does not use when the system asks for memory, until the result is
     * closed.
     */
    public fun trim(context: Context, scope: CoroutineScope, pipeline: Pipeline): AutoCloseable {
        val callbacks = TrimCallbacks { scope.launch { letGo(pipeline) } }
        val application = context.applicationContext
        application.registerComponentCallbacks(callbacks)
        return AutoCloseable { application.unregisterComponentCallbacks(callbacks) }
    }
}

/**
 * [Pipeline.trim], where nobody waits for an error: an app would end with it. A pipeline that was
 * closed in the meantime has let go of all, and so has one that could not free a part.
 */
internal suspend fun letGo(pipeline: Pipeline) {
    try {
        pipeline.trim()
    } catch (error: CancellationException) {
        throw error
    } catch (_: IllegalStateException) { // closed
    } catch (_: MtuException.PartFailed) {
    }
}

/** Bytes as people read them. */
internal fun megabytes(bytes: Long): String = "%,d MB".format(Locale.ROOT, bytes / 1_000_000)

internal fun adviceFor(weights: Long, free: Long, threshold: Long, memory: Memory): String? {
    val usable = maxOf(0, free - threshold) // below the threshold the system ends apps
    if (weights <= usable) return null
    val way =
        if (memory == Memory.LEAST) "close other apps" else "use Memory.LEAST or close other apps"
    return "the weights are ${megabytes(weights)}, ${megabytes(usable)} are free: $way"
}

// From Android 14 on the system tells of the background alone; below it, of low memory before.
@Suppress("DEPRECATION")
internal class TrimCallbacks(private val trim: () -> Unit) : ComponentCallbacks2 {
    override fun onTrimMemory(level: Int) {
        if (level >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW) trim()
    }

    @Deprecated("The system calls it where it knows no levels.")
    override fun onLowMemory(): Unit = trim()

    override fun onConfigurationChanged(newConfig: Configuration) {}
}
