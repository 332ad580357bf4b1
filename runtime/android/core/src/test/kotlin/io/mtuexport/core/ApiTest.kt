package io.mtuexport.core

import io.mtuexport.testkit.PublicNames
import org.junit.jupiter.api.Test

/** The public names of the module are those of `api.txt`, so that none changes by accident. */
internal class ApiTest {
    @Test
    fun `public names are those of the checked-in list`() {
        PublicNames.requireListed(ModelBundle::class.java)
    }
}
