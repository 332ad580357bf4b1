package io.mtuexport.core

import java.io.File

/** How much of a bundle is checked when it is opened. */
public sealed class Trust {
    /** The hash that `manifest.json` must have, in hexadecimal letters; null takes any. */
    public abstract val manifestSha256: String?

    /**
     * Every rule of the contract, every hash: reads the whole bundle.
     *
     * @property manifestSha256 Nothing signs a manifest: an app that downloads bundles ships it.
     */
    public class Full(override val manifestSha256: String? = null) : Trust() {
        init {
            checkHash()
        }
    }

    /**
     * As [Full], but what was read once is not read again: after a full check size, times and file
     * key of every file are written to [file], and as long as all of them are the same, hashes, the
     * inside of ONNX files and the finiteness of numbers are taken as checked. Any difference means
     * a full check. So does a [file] that cannot be written, and a bundle changed less than two
     * seconds before its check ended.
     *
     * For storage that no other app can write.
     *
     * @property file Outside the bundle; written whole or not at all.
     * @property manifestSha256 As of [Full]; compared each time.
     */
    public class Receipt(
        public val file: File,
        override val manifestSha256: String? = null,
    ) : Trust() {
        init {
            checkHash()
        }
    }

    internal fun checkHash() {
        val hash = manifestSha256
        require(hash == null || hash.matches(HASH)) {
            "manifestSha256 must be 64 hexadecimal letters"
        }
    }

    private companion object {
        private val HASH = Regex("[0-9a-fA-F]{64}")
    }
}
