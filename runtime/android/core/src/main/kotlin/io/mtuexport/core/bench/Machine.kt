package io.mtuexport.core.bench

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What Linux tells of this process and its machine; null where it does not. */
internal object Machine {
    private val CPUS = File("/sys/devices/system/cpu")
    private val CPU = Regex("cpu[0-9]+")

    fun text(file: File): String? =
        try {
            file.readText().trim()
        } catch (error: IOException) {
            null
        }

    private fun status(field: String): String? =
        text(File("/proc/self/status"))
            ?.lineSequence()
            ?.firstOrNull { it.startsWith("$field:") }
            ?.substringAfter(':')
            ?.trim()

    private fun bytes(field: String): Long? =
        status(field)?.removeSuffix(" kB")?.toLongOrNull()?.times(1024)

    /** Resident memory: anonymous, of files, and the peak since [resetPeak]. */
    fun memory(): MutableMap<String, Any?> =
        linkedMapOf(
            "anonymous" to bytes("RssAnon"),
            "file" to bytes("RssFile"),
            "peak" to bytes("VmHWM"),
        )

    /** Whether the peak begins anew. */
    fun resetPeak(): Boolean =
        try {
            File("/proc/self/clear_refs").writeText("5")
            true
        } catch (error: IOException) {
            false
        }

    /** CPUs that this process may use, in hexadecimal. */
    fun mask(): String? = status("Cpus_allowed")?.replace(",", "")?.trimStart('0')?.ifEmpty { "0" }

    /** The clock of each core in kHz; null unless every core tells it. */
    fun clocks(): List<Long>? {
        val cores =
            CPUS.listFiles { file -> CPU.matches(file.name) }?.sortedBy { it.name.drop(3).toInt() }
        val clocks =
            cores?.map { text(File(it, "cpufreq/scaling_cur_freq"))?.toLongOrNull() ?: return null }
        return clocks?.takeIf { it.isNotEmpty() }
    }

    /** Architecture, cores, bytes of a page and governor; null where the page is unknown. */
    fun describe(): MutableMap<String, Any?>? {
        val page = pageSize() ?: return null
        val arch = System.getProperty("os.arch").orEmpty()
        return linkedMapOf(
            "arch" to if (arch == "amd64") "x86_64" else arch,
            "cores" to Runtime.getRuntime().availableProcessors(),
            "page_size" to page,
            "governor" to text(File(CPUS, "cpu0/cpufreq/scaling_governor")),
        )
    }

    // Entry 6 of the auxiliary vector, pairs of two words.
    private fun pageSize(): Long? =
        try {
            val vector =
                ByteBuffer.wrap(File("/proc/self/auxv").readBytes()).order(ByteOrder.nativeOrder())
            var size: Long? = null
            while (size == null && vector.remaining() >= 16) {
                val kind = vector.getLong()
                val value = vector.getLong()
                if (kind == 6L) size = value
            }
            size
        } catch (error: IOException) {
            null
        }
}
