package io.mtuexport.core

/** The noise of a picture: standard normal numbers [1 + P, C, h, w]. */
public sealed class Noise {
    /**
     * What `mtu-export run --seed` draws (appendix of the contract): the same seed is the same
     * noise in every language.
     *
     * @property seed At least 0.
     */
    public class Seed(public val seed: Long) : Noise()

    /**
     * Numbers of the caller's.
     *
     * @property values Those of n_0 alone, or of n_0 to n_P; all finite.
     */
    public class Values(public val values: FloatArray) : Noise()
}
