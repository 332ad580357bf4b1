package io.mtuexport.sample

import java.io.File

/** What `am start` asks the bench activity for: a job's file, and the folder of its result. */
internal class BenchRequest(val job: File, val folder: File) {
    val progress: File
        get() = File(folder, "progress.jsonl")

    val result: File
        get() = File(folder, "result.json")

    companion object {
        private val ID = Regex("[A-Za-z0-9_-]{1,64}")

        /** Null where an extra is missing or not legal. */
        fun of(media: File?, job: String?, id: String?): BenchRequest? {
            if (media == null || job == null || !File(job).isAbsolute) return null
            if (id == null || !ID.matches(id)) return null
            return BenchRequest(File(job), File(media, "bench/$id"))
        }
    }
}
