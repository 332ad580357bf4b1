package io.mtuexport.core.bench

import io.mtuexport.core.ElementType
import io.mtuexport.core.TensorSpec
import java.io.File

/** Reads a job and refuses all of it that does not fit together, before an engine is opened. */
internal class JobReader(private val file: File) {
    private val root = Fields(readJson(file), "")
    private val folder: File = file.absoluteFile.parentFile

    fun read(): Job {
        root.whole("format", 1, 1)
        val engine = root.string("engine")
        if (engine != "onnx" && engine != "executorch") root.refuse("engine is onnx or executorch")
        if (root.has("library")) root.refuse("library", "this runner has engines of its own")
        val options = options(engine)
        val threads = root.whole("threads", 0, 1024, 0).toInt()
        if (root.has("cpus") && root.string("cpus") != "all") {
            root.refuse("cpus", "this runner binds no cores: all is needed")
        }
        val warmup = root.whole("warmup", 0, 100_000, 0).toInt()
        val samples = root.whole("samples", 1, 100_000).toInt()
        val cooldown = root.whole("cooldown_ms", 0, 600_000, 0)
        val loadAgain = root.has("load_again") && root.truth("load_again")
        val deadline = deadline()
        val parts = parts()
        val tensors =
            if (root.has("tensors")) TensorFile(File(folder, root.path("tensors"))) else null
        val resolver = Resolver(parts, tensors)
        for ((index, value) in root.list("program", 100_000).withIndex()) {
            resolver.add(Fields(value, "program[$index]"))
        }
        val calls = resolver.program.count { it is Step.Call }.toLong()
        if (calls == 0L || calls * samples > 400_000)
            root.refuse("the samples make no call, or more than 400,000")
        val expected = expected(resolver, tensors)
        val keep = keep(resolver)
        val outputs = if (keep == null) null else root.path("outputs")
        root.done()
        return Job(
            folder,
            engine,
            options,
            threads,
            warmup,
            samples,
            cooldown,
            deadline,
            loadAgain,
            parts,
            tensors,
            resolver.forms,
            resolver.initial,
            resolver.program,
            resolver.registers,
            expected,
            outputs,
            keep.orEmpty(),
        )
    }

    private fun options(engine: String): Map<String, String> {
        val options = if (root.has("options")) root.names("options") else emptyMap()
        if (engine != "onnx" && options.isNotEmpty()) root.refuse("options", "$engine has none")
        val legal =
            mapOf("graph_optimization" to listOf("all", "none"), "arena" to listOf("0", "1"))
        for ((key, values) in legal) {
            val value = options[key] ?: continue
            if (value !in values)
                root.refuse("options.$key", "${values.joinToString(" or ")} is needed")
        }
        return options
    }

    private fun deadline(): Double {
        if (!root.has("deadline_s")) return 600.0
        val seconds = Fields.number(root.need("deadline_s")) ?: 0.0
        if (!(seconds > 0 && seconds <= 604_800))
            root.refuse("deadline_s", "a number above 0, at most 604,800, is needed")
        return seconds
    }

    private fun parts(): List<JobPart> {
        val parts = Fields(root.need("parts"), "parts")
        if (parts.keys.size !in 1..64) root.refuse("parts", "1 to 64 are needed")
        return parts.keys.map { name ->
            val part = Fields(parts.need(name), "parts.$name")
            val entry = part.string("entry")
            if ('/' in entry || entry.startsWith(".")) {
                part.refuse("entry", "a name without '/' that does not begin with '.' is needed")
            }
            val read =
                JobPart(
                    name,
                    part.path("path"),
                    entry,
                    specs(part, "inputs"),
                    specs(part, "outputs"),
                )
            if (read.outputs.isEmpty()) part.refuse("outputs", "one or more are needed")
            part.done()
            read
        }
    }

    private fun specs(part: Fields, key: String): List<TensorSpec> {
        val specs =
            part.list(key, 64).mapIndexed { index, value ->
                val spec = Fields(value, "${part.at(key)}[$index]")
                val type =
                    when (spec.string("dtype")) {
                        "float32" -> ElementType.FLOAT32
                        "int32" -> ElementType.INT32
                        else -> spec.refuse("dtype", "float32 or int32 is needed")
                    }
                val shape =
                    shapeOf(spec.need("shape"))
                        ?: spec.refuse(
                            "shape",
                            "rank at most 8, extents from 1, at most 1 GiB are needed",
                        )
                TensorSpec(spec.string("name"), shape, type).also { spec.done() }
            }
        val twice = specs.groupBy { it.name }.entries.firstOrNull { it.value.size > 1 }
        if (twice != null) part.refuse(key, "'${twice.key}' is there twice")
        return specs
    }

    private fun expected(resolver: Resolver, tensors: TensorFile?): Map<String, String> {
        val expected = if (root.has("expected")) root.names("expected") else emptyMap()
        for ((register, name) in expected) {
            val form = resolver.forms[resolver.slot(root, register)]
            val reference =
                tensors?.forms?.get(name)
                    ?: root.refuse("expected.$register", "there is no tensor '$name'")
            if (form.type != ElementType.FLOAT32 || form != reference) {
                root.refuse(
                    "expected.$register",
                    "the register is $form, tensor '$name' $reference",
                )
            }
        }
        return expected
    }

    private fun keep(resolver: Resolver): List<String>? {
        if (root.has("outputs") != root.has("keep"))
            root.refuse("outputs and keep stand together or not at all")
        if (!root.has("keep")) return null
        return root.list("keep", 1024).map { name ->
            resolver.slot(root, name)
            name as String
        }
    }
}

/** A shape of rank 0 to 8 with extents from 1 and at most 1 GiB; null of anything else. */
internal fun shapeOf(value: Any?): IntArray? {
    val list = value as? List<*> ?: return null
    if (list.size > 8) return null
    var bytes = 4L
    return IntArray(list.size) { index ->
        val extent = Fields.number(list[index]) ?: return null
        if (extent != Math.rint(extent) || extent < 1 || extent > LARGEST_TENSOR) return null
        bytes *= extent.toLong()
        if (bytes > LARGEST_TENSOR) return null
        extent.toInt()
    }
}
