package io.mtuexport.core

private const val NOISE = "noise"

/**
 * Rule 10, of `goldens.safetensors`: each has the shape that the manifest says of it, and is
 * finite, which is read only where [readNumbers] asks for it. Other names are ignored.
 */
internal fun checkGoldens(manifest: Manifest, goldens: Safetensors, readNumbers: Boolean) {
    val ours = goldens.names.mapNotNull { name -> goldenShape(manifest, name)?.let { name to it } }
    for ((name, expected) in ours) {
        val actual = goldens.shape(name)!!
        val shape = if (hasAnyRows(name) && actual.isNotEmpty() && actual[0] > 0) {
            actual.copyOf().also { it[0] = 1 }
        } else {
            actual
        }
        refuseUnless(shape.contentEquals(expected), GOLDENS) {
            "${quoted(name)} must be ${Tensor.shown(expected)}, it is ${Tensor.shown(actual)}"
        }
    }
    if (readNumbers) goldens.requireFinite(ours.map { it.first })
}

/** Whether a golden is the noise of a loop: that of the start, or of the start and the passes. */
private fun hasAnyRows(golden: String): Boolean {
    val names = golden.split('/')
    return names.size == 3 && names[0] == "loop" && names[2] == NOISE
}

/** The shape that the manifest says of a golden; null of names that it does not know. */
private fun goldenShape(manifest: Manifest, golden: String): IntArray? {
    val names = golden.split('/', limit = 4)
    if (names.size < 3) return null
    val (first, taskName, kind) = names
    val name = names.getOrElse(3) { "" }
    val task = manifest.tasks.firstOrNull { it.name == taskName } ?: return null
    if (first != "loop") {
        val part = manifest.parts.firstOrNull { it.name == first } ?: return null
        return (part.inputsOf(taskName) + part.outputs).firstOrNull { it.name == name }?.shape
    }
    return when (kind) {
        "picture" -> intArrayOf(1, 3, manifest.height, manifest.width)
        "request" ->
            task.inputs.pictures[name]?.let { pictureShape(manifest, it) }
                ?: task.inputs.tensors[name]
        NOISE, "outputs", "latents" -> latentShapeOrNull(manifest)
        else -> null
    }
}
