package io.mtuexport.sample

import io.mtuexport.core.Event
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Noise
import io.mtuexport.core.RgbImage
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.Tensor
import io.mtuexport.core.Timings
import java.io.File
import kotlin.time.Duration.Companion.milliseconds
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What of the app needs no Android; its screens and its service are compiled alone. */
class SampleTest {
    private val bundle by lazy {
        ModelBundle.open(File(System.getProperty("mtu.runtime"), "testdata/edit-onnx-int8"))
    }

    @Test
    fun `a line is drawn with round ends`() {
        val mask = Mask(20, 10)
        assertTrue(mask.isEmpty)
        mask.stroke(5f, 5f, 14f, 5f, 2f)
        for ((x, y) in listOf(3 to 5, 16 to 5, 10 to 3, 10 to 7, 4 to 4)) assertTrue(
            mask[x, y],
            "$x $y",
        )
        for ((x, y) in listOf(2 to 5, 17 to 5, 10 to 2, 10 to 8, 3 to 3)) assertFalse(
            mask[x, y],
            "$x $y",
        )
        mask.stroke(-50f, -50f, -40f, -40f, 5f)
        mask.stroke(19f, 9f, 400f, 400f, 1f)
        assertTrue(mask[19, 9])
        val image = mask.image()
        assertEquals(listOf(20, 10, 1), listOf(image.width, image.height, image.orientation))
        assertEquals(
            listOf<Byte>(-1, -1, -1, -1),
            image.pixels.slice(4 * (5 * 20 + 10) until 4 * (5 * 20 + 10) + 4),
        )
        assertEquals(listOf<Byte>(0, 0, 0, -1), image.pixels.slice(0 until 4))
        mask.clear()
        assertTrue(mask.isEmpty)
    }

    private fun form(
        picture: RgbaImage? = RgbaImage(2, 1, ByteArray(8), orientation = 6),
        seed: String = "7",
    ) =
        RequestForm(
            "a house",
            "",
            seed,
            bundle.tasks.single().allowed.first(),
            picture,
            mask = null,
        )

    @Test
    fun `a request is what the task takes of the form`() {
        val task = bundle.tasks.single()
        val request = form().request(task)
        assertEquals("a house", request.prompt)
        assertNull(request.negativePrompt)
        assertEquals(task.pictures.keys, request.pictures.keys)
        assertEquals(6, request.pictures.values.first().orientation)
        assertEquals(task.allowed.first().steps, request.steps)
        assertEquals(7L, (request.noise as Noise.Seed).seed)
        assertEquals(0L, (form(seed = "").request(task).noise as Noise.Seed).seed)
        for (bad in listOf({ form(picture = null) }, { form(seed = "99999999999999999999") })) {
            assertThrows(IllegalArgumentException::class.java) { bad().request(task) }
        }
    }

    @Test
    fun `progress says what happens`() {
        assertEquals("loading unet", Progress.of(Event.Loading("unet")).line)
        assertEquals(
            "pass 2 of 20, 1.5 s",
            Progress.of(Event.Passed(2, 20, 1500.milliseconds)).line,
        )
        val finished =
            Event.Finished(
                RgbImage(1, 1, ByteArray(3)),
                Tensor.Floats(intArrayOf(1, 3, 1, 1), FloatArray(3)),
                seed = 7,
                timings =
                    Timings(
                        2000.milliseconds,
                        mapOf("unet" to 500.milliseconds),
                        mapOf("unet" to 1250.milliseconds),
                    ),
            )
        val progress = Progress.of(finished)
        assertEquals("2.0 s: loading 0.5 s, running 1.3 s, seed 7", progress.line)
        assertTrue(progress.isOver && progress.picture === finished.picture)
    }

    @Test
    fun `a job is asked for by an absolute path and a plain id`() {
        val media = File("/storage/media")
        val request = BenchRequest.of(media, "/data/local/tmp/mtu-export/a1/job.json", "a1_B-2")
        assertNotNull(request)
        assertEquals(File("/storage/media/bench/a1_B-2/result.json"), request!!.result)
        assertEquals("progress.jsonl", request.progress.name)
        for (id in listOf(null, "", "a/b", "..", "a b", "x".repeat(65))) {
            assertNull(BenchRequest.of(media, "/job.json", id), "$id")
        }
        assertNull(BenchRequest.of(media, "job.json", "a"))
        assertNull(BenchRequest.of(null, "/job.json", "a"))
    }

    @Test
    fun `the app asks for no network`() {
        val manifest =
            File(System.getProperty("mtu.runtime"), "android/sample/src/main/AndroidManifest.xml")
                .readText()
        assertTrue("FOREGROUND_SERVICE_DATA_SYNC" in manifest)
        assertFalse("permission.INTERNET" in manifest || "ACCESS_NETWORK" in manifest)
    }
}
