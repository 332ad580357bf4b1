package io.mtuexport.sample

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Build
import android.os.Handler
import android.os.IBinder
import android.os.Looper
import io.mtuexport.android.DeviceMemory
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Pipeline
import io.mtuexport.core.Trust
import java.util.Locale
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** Makes pictures while the user is elsewhere: a foreground service that ends with its work. */
public class WorkService : Service() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Default)
    private val main = Handler(Looper.getMainLooper())
    private var job: Job? = null

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        toForeground(TITLE)
        val work = Desk.work
        if (intent?.action == CANCEL || work == null) {
            job?.cancel()
            if (job == null) stopSelf()
        } else if (job == null) {
            job = scope.launch { run(work) }
        }
        return START_NOT_STICKY
    }

    private suspend fun run(work: Work) {
        try {
            show(Progress("checking the bundle"))
            val receipt = Storage.bundles(this).receipt(work.bundle)
            val bundle = ModelBundle.open(work.bundle, Trust.Receipt(receipt))
            DeviceMemory.advice(this, bundle, work.task)?.let { show(Progress(it)) }
            Pipeline.open(bundle, Engines.of(bundle.target), work.task).use { pipeline ->
                DeviceMemory.trim(this, scope, pipeline).use { make(work, pipeline) }
            }
        } catch (error: CancellationException) {
            show(Progress("cancelled", isOver = true))
            throw error
        } catch (error: Exception) {
            show(Progress(error.message ?: error.toString(), isOver = true))
        } finally {
            main.post {
                job = null
                stopForeground(STOP_FOREGROUND_REMOVE)
                stopSelf()
            }
        }
    }

    private suspend fun make(work: Work, pipeline: Pipeline) {
        when (work) {
            is Work.Picture -> pipeline.generate(work.request).collect { show(Progress.of(it)) }
            is Work.Verification -> {
                show(Progress("running the goldens"))
                val lines =
                    pipeline.verify().map {
                        val passed = if (it.passed == false) "FAILED" else "ok"
                        "%s %s: %.1f dB, %.1f are needed: %s"
                            .format(Locale.ROOT, it.part, it.stage, it.psnrDb, it.floorDb, passed)
                    }
                show(Progress(lines.joinToString("\n"), isOver = true))
            }
        }
    }

    private fun show(progress: Progress) {
        main.post {
            Desk.progress = progress
            if (!progress.isOver && job != null) {
                notifications().notify(NOTIFICATION, notification(progress.line))
            }
        }
    }

    // Since Android 15: the app ends in seconds unless the service stops now. A part that cannot be
    // interrupted takes longer, so the service does not wait for its work.
    override fun onTimeout(startId: Int, type: Int) {
        job?.cancel(CancellationException("the system's time for work in the background is over"))
        stopForeground(STOP_FOREGROUND_REMOVE)
        stopSelf()
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    private fun notifications() =
        getSystemService(Context.NOTIFICATION_SERVICE) as NotificationManager

    private fun toForeground(line: String) {
        val notification = notification(line)
        when {
            Build.VERSION.SDK_INT >= 35 ->
                startForeground(
                    NOTIFICATION,
                    notification,
                    ServiceInfo.FOREGROUND_SERVICE_TYPE_MEDIA_PROCESSING,
                )
            Build.VERSION.SDK_INT >= 34 ->
                startForeground(
                    NOTIFICATION,
                    notification,
                    ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC,
                )
            else -> startForeground(NOTIFICATION, notification)
        }
    }

    private fun notification(line: String): Notification {
        val manager = notifications()
        manager.createNotificationChannel(
            NotificationChannel(CHANNEL, TITLE, NotificationManager.IMPORTANCE_LOW)
        )
        val cancel = Intent(this, WorkService::class.java).setAction(CANCEL)
        val pending = PendingIntent.getService(this, 0, cancel, PendingIntent.FLAG_IMMUTABLE)
        return Notification.Builder(this, CHANNEL)
            .setSmallIcon(android.R.drawable.ic_menu_gallery)
            .setContentTitle(line)
            .setOngoing(true)
            .addAction(
                Notification.Action.Builder(null, getString(android.R.string.cancel), pending)
                    .build()
            )
            .build()
    }

    internal companion object {
        private const val NOTIFICATION = 1
        private const val CHANNEL = "work"
        private const val CANCEL = "cancel"
        private const val TITLE = "Making a picture"

        fun start(context: Context, work: Work) {
            Desk.work = work
            Desk.progress = null
            context.startForegroundService(Intent(context, WorkService::class.java))
        }

        fun cancel(context: Context) {
            context.startService(Intent(context, WorkService::class.java).setAction(CANCEL))
        }
    }
}
