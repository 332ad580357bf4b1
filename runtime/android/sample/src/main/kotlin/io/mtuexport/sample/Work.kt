package io.mtuexport.sample

import io.mtuexport.core.Event
import io.mtuexport.core.Request
import io.mtuexport.core.RgbImage
import java.io.File
import java.util.Locale
import kotlin.time.Duration

/** What the app is asked to do in the foreground service. */
internal sealed class Work(val bundle: File, val task: String) {
    class Picture(bundle: File, task: String, val request: Request) : Work(bundle, task)

    class Verification(bundle: File, task: String) : Work(bundle, task)
}

/** How far it is. Screens show [line], and [picture] where there is one. */
internal class Progress(
    val line: String,
    val isOver: Boolean = false,
    val picture: RgbImage? = null,
) {
    companion object {
        fun of(event: Event): Progress =
            when (event) {
                is Event.Loading -> Progress("loading ${event.part}")
                is Event.Passed ->
                    Progress("pass ${event.number} of ${event.of}, ${seconds(event.elapsed)}")
                is Event.Finished ->
                    Progress(
                        "${seconds(event.timings.total)}: " +
                            "loading ${seconds(event.timings.load.values)}, " +
                            "running ${seconds(event.timings.run.values)}" +
                            (event.seed?.let { ", seed $it" } ?: ""),
                        isOver = true,
                        picture = event.picture,
                    )
            }

        private fun seconds(time: Duration): String =
            "%.1f s".format(Locale.ROOT, time.inWholeMilliseconds / 1000.0)

        private fun seconds(times: Collection<Duration>): String =
            seconds(times.fold(Duration.ZERO, Duration::plus))
    }
}

/** The one work of the process, and who looks at it. Called by the main thread alone. */
internal object Desk {
    var work: Work? = null
    var progress: Progress? = null
        set(value) {
            field = value
            if (value != null) listener?.invoke(value)
        }

    var listener: ((Progress) -> Unit)? = null
        set(value) {
            field = value
            progress?.let { value?.invoke(it) }
        }
}
