package org.pytorch.executorch

/**
 * What a file says of one of its methods.
 *
 * @property name The method's name.
 */
public class MethodMetadata internal constructor(public val name: String, backends: Array<String>) {
    private val names = backends.clone()

    /** The backends that parts of it were lowered to, such as `XnnpackBackend`. */
    public val backends: Array<String>
        get() = names.clone()
}
