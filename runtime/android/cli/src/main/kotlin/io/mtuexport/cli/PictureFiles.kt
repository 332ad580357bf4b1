package io.mtuexport.cli

import io.mtuexport.core.Exif
import io.mtuexport.core.RgbImage
import io.mtuexport.core.RgbaImage
import java.awt.image.BufferedImage
import java.awt.image.DataBuffer
import java.awt.image.IndexColorModel
import java.awt.image.Raster
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import javax.imageio.IIOImage
import javax.imageio.ImageIO
import javax.imageio.ImageReader
import javax.imageio.ImageTypeSpecifier
import javax.imageio.ImageWriteParam
import javax.imageio.ImageWriter
import javax.imageio.metadata.IIOMetadata
import javax.imageio.metadata.IIOMetadataNode
import org.w3c.dom.Element

/**
 * Pictures of files: PNG and JPEG are read and written, by javax.imageio.
 *
 * Samples are taken as the file has them; colour profiles are not applied.
 */
internal object PictureFiles {
    private const val MOST_PIXELS = 100_000_000L
    private const val LEGAL = "PNG, JPEG"
    private const val LARGEST_FILE = 1L shl 30
    private const val BYTE = 8
    private val CUT = listOf("premature end", "missing EOI")
    private val SUFFIXES = mapOf("png" to "png", "jpg" to "jpeg", "jpeg" to "jpeg")

    init {
        ImageIO.setUseCache(false)
    }

    /** The picture of a file, with its EXIF orientation. */
    fun read(path: File): RgbaImage {
        val name = quotedPath(path.path)
        if (path.exists() && !path.isFile) throw Refusal("$name is not a file")
        if (!path.exists()) throw Refusal("no image file $name")
        if (path.length() > LARGEST_FILE) throw Refusal("$name has more than 1 GiB")
        val bytes =
            try {
                path.readBytes()
            } catch (error: IOException) {
                throw Refusal("$name cannot be read as an image: ${reasonOf(error)}", cause = error)
            }
        val format = formatOf(bytes)
        if (format != "PNG" && format != "JPEG") {
            throw Refusal(
                if (format == null) "$name is not an image; legal: $LEGAL"
                else "$name is a $format picture; legal: $LEGAL"
            )
        }
        return decode(name, format, bytes)
    }

    private fun decode(name: String, format: String, bytes: ByteArray): RgbaImage {
        val reader = ImageIO.getImageReadersByFormatName(format).next()
        try {
            val needed = if (format == "PNG") PngChunks.needed(bytes) else bytes
            reader.setInput(
                ImageIO.createImageInputStream(ByteArrayInputStream(needed)),
                false,
                false,
            )
            var warning: String? = null
            reader.addIIOReadWarningListener { _, text -> if (isCut(text)) warning = text }
            checkSize(name, reader)
            val picture = straight(name, reader, Exif.orientation(bytes))
            if (warning != null) throw Refusal("$name cannot be read as an image: $warning")
            return picture
        } catch (error: Refusal) {
            throw error
        } catch (error: OutOfMemoryError) {
            throw Refusal("$name does not fit into memory", RESOURCE, error)
        } catch (error: Exception) { // the decoders throw of every kind on damaged files
            val reason =
                error.message.orEmpty().lineSequence().first().ifEmpty {
                    error.javaClass.simpleName
                }
            throw Refusal("$name cannot be read as an image: $reason", cause = error)
        } finally {
            reader.dispose()
        }
    }

    /** The decoder of JPEG makes up what a file that ends early does not have. */
    private fun isCut(warning: String): Boolean =
        CUT.any { warning.contains(it, ignoreCase = true) }

    private fun checkSize(name: String, reader: ImageReader) {
        val width = reader.getWidth(0)
        val height = reader.getHeight(0)
        if (width < 1 || height < 1) throw Refusal("$name has no pixels: $width x $height")
        if (width.toLong() * height > MOST_PIXELS) {
            throw Refusal("$name has $width x $height pixels, more than 100 megapixels")
        }
    }

    /** What the first bytes say: PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF; null of anything else. */
    private fun formatOf(bytes: ByteArray): String? {
        val start = String(bytes, 0, Math.min(16, bytes.size), Charsets.ISO_8859_1)
        return when {
            start.startsWith("\u0089PNG\r\n\u001A\n") -> "PNG"
            start.startsWith("\u00FF\u00D8\u00FF") -> "JPEG"
            start.startsWith("RIFF") && start.startsWith("WEBP", 8) -> "WebP"
            start.startsWith("ftypavi", 4) -> "AVIF"
            start.startsWith("ftyphei", 4) || start.startsWith("ftypmif1", 4) -> "HEIF"
            start.startsWith("II*\u0000") || start.startsWith("MM\u0000*") -> "TIFF"
            start.startsWith("BM") -> "BMP"
            start.startsWith("GIF8") -> "GIF"
            else -> null
        }
    }

    /** The samples of the first picture as RGBA. */
    private fun straight(name: String, reader: ImageReader, orientation: Int): RgbaImage {
        val type = reader.getRawImageType(0)
        if (type == null || type.numBands !in 1..4 || isCmyk(reader, type)) {
            throw Refusal("$name is a CMYK picture; legal: RGB and grey")
        }
        val image = reader.read(0)
        val width = image.width
        val height = image.height
        val model = image.colorModel
        if (model is IndexColorModel) return ofPalette(image, model, orientation)
        val raster = image.raster
        val isWide = raster.transferType == DataBuffer.TYPE_USHORT
        if (isWide && raster.numBands == 1) {
            val levels = ShortArray(width * height)
            overRows(raster) { at, samples ->
                for (x in 0 until width) levels[at + x] = samples[x].toShort()
            }
            return RgbaImage.ofGrey16(width, height, levels, orientation)
        }
        // A library that decodes 16 bits a sample into 8 keeps the upper ones.
        val shift = if (isWide) BYTE else 0
        val bands = raster.numBands
        val pixels = ByteArray(Math.multiplyExact(4, width * height))
        overRows(raster) { at, samples ->
            for (x in 0 until width) {
                val from = x * bands
                for (channel in 0..2) {
                    val band = if (bands < 3) 0 else channel
                    pixels[4 * (at + x) + channel] = (samples[from + band] shr shift).toByte()
                }
                val alpha = if (bands % 2 == 0) samples[from + bands - 1] shr shift else -1
                pixels[4 * (at + x) + 3] = alpha.toByte()
            }
        }
        return RgbaImage(width, height, pixels, orientation)
    }

    private fun isCmyk(reader: ImageReader, type: ImageTypeSpecifier) =
        type.numBands == 4 && reader.formatName.equals("jpeg", ignoreCase = true)

    private fun ofPalette(
        image: BufferedImage,
        model: IndexColorModel,
        orientation: Int,
    ): RgbaImage {
        val colors = IntArray(model.mapSize).also(model::getRGBs)
        val pixels = ByteArray(Math.multiplyExact(4, image.width * image.height))
        overRows(image.raster) { at, samples ->
            for (x in 0 until image.width) {
                val color = colors[samples[x]]
                pixels[4 * (at + x)] = (color shr 16).toByte()
                pixels[4 * (at + x) + 1] = (color shr 8).toByte()
                pixels[4 * (at + x) + 2] = color.toByte()
                pixels[4 * (at + x) + 3] = (color ushr 24).toByte()
            }
        }
        return RgbaImage(image.width, image.height, pixels, orientation)
    }

    /** Each line's samples, all bands of a pixel together, with the number of its first pixel. */
    private inline fun overRows(raster: Raster, use: (at: Int, samples: IntArray) -> Unit) {
        val samples = IntArray(raster.width * raster.numBands)
        for (y in 0 until raster.height) {
            raster.getPixels(0, y, raster.width, 1, samples)
            use(y * raster.width, samples)
        }
    }

    // ------------------------------------------------------------------------------------ writing

    /** Refuses a file name that [write] would refuse. */
    fun checkSuffix(path: File) {
        if (suffix(path) in SUFFIXES && path.nameWithoutExtension.isNotEmpty()) return
        val legal = SUFFIXES.keys.joinToString { ".$it" }
        throw Refusal("cannot write an image as ${quotedPath(path.name)}; legal suffixes: $legal")
    }

    private fun suffix(path: File) = path.extension.lowercase()

    /** Writes a picture as its file's suffix says, JPEG with quality 95 and whole chroma. */
    fun write(picture: RgbImage, path: File) {
        val image = BufferedImage(picture.width, picture.height, BufferedImage.TYPE_3BYTE_BGR)
        for (y in 0 until picture.height) for (x in 0 until picture.width) {
            val at = 3 * (y * picture.width + x)
            val color =
                (picture.pixels[at].toInt() and 0xFF shl 16) or
                    (picture.pixels[at + 1].toInt() and 0xFF shl 8) or
                    (picture.pixels[at + 2].toInt() and 0xFF)
            image.setRGB(x, y, color)
        }
        writeWhole(path) { encode(image, SUFFIXES.getValue(suffix(path)), it) }
    }

    private fun encode(image: BufferedImage, format: String, file: File) {
        val writer = ImageIO.getImageWritersByFormatName(format).next()
        val settings = writer.defaultWriteParam
        var metadata: IIOMetadata? = null
        if (format == "jpeg") {
            settings.compressionMode = ImageWriteParam.MODE_EXPLICIT
            settings.compressionQuality = 0.95f
            metadata = wholeChroma(writer, image, settings)
        }
        try {
            ImageIO.createImageOutputStream(file).use { stream ->
                writer.output = stream
                writer.write(null, IIOImage(image, null, metadata), settings)
            }
        } finally {
            writer.dispose()
        }
    }

    private fun wholeChroma(
        writer: ImageWriter,
        image: BufferedImage,
        settings: ImageWriteParam,
    ): IIOMetadata {
        val metadata = writer.getDefaultImageMetadata(ImageTypeSpecifier(image), settings)
        val tree = metadata.getAsTree(metadata.nativeMetadataFormatName) as IIOMetadataNode
        val components = tree.getElementsByTagName("componentSpec")
        for (index in 0 until components.length) {
            val component = components.item(index) as Element
            component.setAttribute("HsamplingFactor", "1")
            component.setAttribute("VsamplingFactor", "1")
        }
        metadata.setFromTree(metadata.nativeMetadataFormatName, tree)
        return metadata
    }
}
