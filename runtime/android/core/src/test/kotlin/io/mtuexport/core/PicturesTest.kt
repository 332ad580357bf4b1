package io.mtuexport.core

import io.mtuexport.testkit.TestData
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import javax.imageio.ImageIO
import kotlin.math.abs
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class PicturesTest {
    private val data = TestData.open()

    @TestFactory
    fun `pictures are fitted as the vectors say`(): List<DynamicTest> {
        val expected = data.tensors("fits.safetensors")
        return data.cases("fits.json").map { case ->
            dynamicTest(case["name"] as String) {
                val input = pictureInput(case["picture"] as Map<*, *>)
                val actual =
                    fitted(rawPicture(case), input, int(case, "height"), int(case, "width"))
                val reference = expected.getValue(case["name"] as String) as Tensor.Floats
                assertArrayEquals(reference.shape, actual.shape)
                assertWithin(
                    (case["levels"] as Double).toFloat() * levelOf(input),
                    reference,
                    actual,
                )
            }
        }
    }

    @Test
    fun `the picture of the test request is fitted as Python fits it`() {
        val file = File(data.folder, "input.png")
        val expected = data.tensors("expected.safetensors").getValue("image") as Tensor.Floats
        val decoded = ImageIO.read(file)
        val pixels = ByteArray(4 * decoded.width * decoded.height)
        for (i in 0 until decoded.width * decoded.height) {
            val argb = decoded.getRGB(i % decoded.width, i / decoded.width)
            for (channel in 0 until 3) pixels[4 * i + channel] =
                (argb shr (16 - 8 * channel)).toByte()
            pixels[4 * i + 3] = (argb shr 24).toByte()
        }
        val picture =
            RgbaImage(decoded.width, decoded.height, pixels, Exif.orientation(file.readBytes()))
        assertTrue(picture.orientation != 1) { "the picture is to be turned" }
        val input = PictureInput(PictureKind.PICTURE, Filter.LANCZOS, Range.SIGNED)
        val actual = fitted(picture, input, expected.shape[2], expected.shape[3])
        val different = expected.data.indices.count { expected.data[it] != actual.data[it] }
        println(
            "input.png fitted: $different of ${expected.data.size} numbers differ from Python's"
        )
        assertWithin(levelOf(input), expected, actual)
        assertTrue(psnrDb(expected, actual) > 50)
    }

    @Test
    fun `a picture of no or too many pixels, of other bytes or orientations is refused`() {
        val one = ByteArray(4)
        val illegal =
            listOf(
                RgbaImage(0, 1, ByteArray(0)),
                RgbaImage(1, -1, ByteArray(0)),
                RgbaImage(10_001, 10_000, one),
                RgbaImage(Int.MAX_VALUE, Int.MAX_VALUE, one),
                RgbaImage(1, 1, ByteArray(3)),
                RgbaImage(1, 2, one),
                RgbaImage(1, 1, one, 0),
                RgbaImage(1, 1, one, 9),
            )
        for (picture in illegal) {
            assertThrows(MtuException.RequestRefused::class.java) {
                requireFittable(picture, "image")
            }
        }
        requireFittable(RgbaImage(1, 1, one), "image")
        val legal =
            assertThrows(MtuException.RequestRefused::class.java) {
                    requireFittable(illegal.last(), "image")
                }
                .legal
        assertEquals((1..8).map { "$it" }, legal)
    }

    @Test
    fun `levels are rounded half to even and clipped`() {
        val ties = floatArrayOf(-1.5f, -1f, 0f, 1f, 1.5f, (0.5 / 127.5 - 1).toFloat())
        val pixels =
            rgbOf(Tensor.Floats(intArrayOf(1, 3, 1, 2), ties)).pixels.map { it.toInt() and 0xFF }
        // by pixel, of planes: (-1.5, 0, 1.5) and (-1, 1, about 0.5 / 127.5 - 1)
        assertEquals(listOf(0, 128, 255, 0, 255), pixels.take(5))
    }

    @Test
    fun `a deep grey is divided by 257 and rounded`() {
        val pixels =
            RgbaImage.ofGrey16(3, 1, shortArrayOf(0, 128, -1)).pixels.map { it.toInt() and 0xFF }
        assertEquals(listOf(0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255, 255), pixels)
    }

    private fun rawPicture(case: Map<String, Any?>): RgbaImage {
        val bytes = File(data.folder, case["file"] as String).readBytes()
        val (width, height, orientation) =
            listOf("file_width", "file_height", "orientation").map { int(case, it) }
        if ((case["file"] as String).endsWith(".rgba"))
            return RgbaImage(width, height, bytes, orientation)
        val levels = ShortArray(width * height)
        ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asShortBuffer().get(levels)
        return RgbaImage.ofGrey16(width, height, levels, orientation)
    }

    private fun pictureInput(json: Map<*, *>) =
        PictureInput(
            PictureKind.valueOf((json["kind"] as String).uppercase()),
            if (json["filter"] == "nearest") Filter.NEAREST else Filter.LANCZOS,
            when (json["range"]) {
                "0..1" -> Range.UNIT
                "0..255" -> Range.LEVELS
                else -> Range.SIGNED
            },
        )

    /** What a level of 255 is in a tensor; a mask has only two. */
    private fun levelOf(input: PictureInput) =
        when (input.range) {
            Range.SIGNED -> 1 / 127.5f
            Range.UNIT -> 1 / 255f
            Range.LEVELS -> 1f
        }

    private fun int(case: Map<String, Any?>, key: String) = (case[key] as Double).toInt()

    private fun assertWithin(most: Float, expected: Tensor.Floats, actual: Tensor.Floats) {
        val worst = expected.data.indices.maxOf { abs(expected.data[it] - actual.data[it]) }
        assertTrue(worst <= most * 1.0001f) { "off by $worst, at most $most" }
    }
}
