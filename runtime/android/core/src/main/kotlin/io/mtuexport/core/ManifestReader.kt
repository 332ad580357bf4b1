package io.mtuexport.core

import java.util.Locale

/** The types of a manifest, from JSON that fits `manifest.schema.json`. */
internal object ManifestReader {
    fun manifest(json: JsonObject): Manifest {
        val scheme = json.member("scheme")
        val image = json.member("image")
        return Manifest(
            name = json.text("name"),
            schemaVersion = json.text("schema_version"),
            target = target(json.text("target")),
            versions = json.member("versions").mapValues { it.value as String },
            height = image.int("height"),
            width = image.int("width"),
            latent = json.memberOrNull("latent")?.let(::latent),
            tasks = json.members("tasks").map(::task),
            parts = json.members("parts").map { part(it, scheme) },
            tokenizers = json.members("tokenizers").map(::tokenizer),
            files = json.members("files").map(::file),
            schedules = json.memberOrNull("loop")?.members("schedules").orEmpty().map(::schedule),
            golden = json.memberOrNull("golden")?.let(::golden),
            proof = json.members("proof").map(::proof),
        )
    }

    private fun latent(json: JsonObject) = Latent(json.int("channels"), json.int("factor"))

    fun task(json: JsonObject): Task = Task(
        name = json.text("name"),
        guidance = guidance(json.member("guidance")),
        steps = json.int("steps"),
        strength = json.numberOrNull("strength"),
        prompt = json.textOrNull("prompt"),
        inputs = taskInputs(json.member("inputs")),
        flow = flow(json.member("flow")),
    )

    fun guidance(json: JsonObject): Guidance =
        when (val kind = enumOf<GuidanceKind>(json.text("kind"))) {
            GuidanceKind.NONE -> Guidance(kind)
            GuidanceKind.TEXT -> Guidance(kind, json.number("text"))
            GuidanceKind.TEXT_IMAGE -> Guidance(kind, json.number("text"), json.number("image"))
        }

    fun schedule(json: JsonObject): Schedule {
        val start = json.member("start")
        return Schedule(
            steps = json.int("steps"),
            strength = json.numberOrNull("strength"),
            startNoise = start.number("noise"),
            startPicture = start.number("picture"),
            passes = json.members("passes").map(::pass),
        )
    }

    fun specs(list: List<JsonObject>): List<TensorSpec> =
        list.map { TensorSpec(it.text("name"), it.ints("shape"), enumOf(it.text("dtype"))) }

    fun tokenizer(json: JsonObject): TokenizerRecord = TokenizerRecord(
        path = json.text("path"),
        bos = json.long("bos"),
        eos = json.long("eos"),
        pad = json.long("pad"),
        length = json.int("length"),
    )

    private fun target(name: String): Target =
        Target.entries.firstOrNull { it.label == name }
            ?: throw MtuException.BundleRefused(0, "$MANIFEST: target", "unknown: ${quoted(name)}")

    private fun taskInputs(json: JsonObject) = TaskInputs(
        pictures = json.named("pictures").mapValues { pictureInput(it.value.asObject()) },
        tensors = json.named("tensors").mapValues { it.value.asObject().ints("shape") },
        numbers = json.named("numbers").mapValues { numberRange(it.value.asObject()) },
    )

    private fun pictureInput(json: JsonObject) = PictureInput(
        kind = enumOf(json.text("kind")),
        filter = enumOf(json.textOrNull("filter") ?: "lanczos"),
        range = when (json["range"]) {
            "0..1" -> Range.UNIT
            "0..255" -> Range.LEVELS
            else -> Range.SIGNED
        },
    )

    private fun numberRange(json: JsonObject) =
        NumberRange(json.number("default"), json.number("minimum"), json.number("maximum"))

    private fun flow(json: JsonObject) = Flow(
        calls = json.members("calls").map(::call),
        start = json.memberOrNull("start")?.let(::source),
        prediction = json.memberOrNull("prediction")?.let(::outputName),
        refined = json.memberOrNull("refined")?.let(::outputName),
        picture = outputName(json.member("picture")),
    )

    private fun call(json: JsonObject) = Call(
        id = json.text("id"),
        part = json.text("part"),
        stage = enumOf(json.text("when")),
        inputs = json.member("inputs").mapValues { value(it.value.asObject()) },
    )

    private fun value(json: JsonObject) = Value(
        sources = json.members("sources").map(::source),
        axis = json.numberOrNull("axis")?.toInt(),
        empty = json.textOrNull("empty"),
    )

    private fun source(json: JsonObject) = Source(
        kind = enumOf(json.text("kind")),
        name = json.textOrNull("name"),
        tokenizer = json.textOrNull("tokenizer"),
        call = json.textOrNull("call"),
        outside = json.textOrNull("outside"),
        every = json.numberOrNull("every")?.toInt(),
        mean = json.numberOrNull("mean")?.toInt(),
        multiply = json.numberOrNull("multiply"),
        divide = json.numberOrNull("divide"),
        only = json.textOrNull("only")?.let { enumOf<Only>(it) },
    )

    private fun outputName(json: JsonObject) = OutputName(json.text("call"), json.text("name"))

    private fun part(json: JsonObject, schemeOfAll: JsonObject): Part {
        val cost = json.member("cost")
        val activations = (json.memberOrNull("scheme") ?: schemeOfAll).text("activations")
        return Part(
            name = json.text("name"),
            kind = enumOf(json.text("kind")),
            file = file(json),
            data = json.list("data").map { it as String },
            entries = json.member("entries").mapValues { it.value as String },
            inputs = specs(json.members("inputs")),
            outputs = specs(json.members("outputs")),
            taskInputs = json.named("task_inputs").mapValues { specs(it.value.asObjects()) },
            weightBytes = cost.long("weight_bytes"),
            taskWeightBytes = cost.named("task_weight_bytes").run { mapValues { long(it.key) } },
            sharedWeightBytes = cost.numberOrNull("shared_weight_bytes")?.toLong() ?: 0,
            flopsConvLinear = cost.long("flops_conv_linear"),
            flopsTotal = cost.long("flops_total"),
            parameters = cost.long("parameters"),
            quantisedActivations = activations.takeIf { it != "float32" },
            witness = json.named("witness").keys,
        )
    }

    private fun file(json: JsonObject) =
        FileRecord(json.text("path"), json.long("bytes"), json.text("sha256"))

    private fun pass(json: JsonObject): Pass {
        val columns = json.member("columns")
        return Pass(
            columns = columns.mapValues { (_, value) ->
                if (value is Double) doubleArrayOf(value) else numbers(value)
            },
            scalars = columns.filterValues { it is Double }.keys,
            inputScale = json.number("input_scale"),
            x = numbers(json["x"]),
            m = numbers(json["m"]),
            noise = json.number("noise"),
        )
    }

    private fun numbers(value: Any?): DoubleArray {
        val list = value as List<*>
        return DoubleArray(list.size) { list[it] as Double }
    }

    private fun golden(json: JsonObject) = Golden(
        prompt = json.text("prompt"),
        negativePrompt = json.textOrNull("negative_prompt"),
        steps = json.numberOrNull("steps")?.toInt(),
        strength = json.numberOrNull("strength"),
    )

    private fun proof(json: JsonObject) = ProofEntry(
        part = json.text("part"),
        task = json.text("task"),
        stage = json.text("stage"),
        psnrDb = json.numberOrNull("psnr_db"),
        floorDb = json.number("floor_db"),
        passed = json["passed"] as Boolean?,
    )

    private inline fun <reified T : Enum<T>> enumOf(name: String): T =
        enumValueOf(name.uppercase(Locale.ROOT))
}

// Members of an object whose types the schema has checked.

internal fun JsonObject.text(key: String): String = this[key] as String

internal fun JsonObject.textOrNull(key: String): String? = this[key] as String?

internal fun JsonObject.number(key: String): Double = this[key] as Double

internal fun JsonObject.numberOrNull(key: String): Double? = this[key] as Double?

/** A whole number; the nearest [Int] of one beyond. */
internal fun JsonObject.int(key: String): Int = number(key).toInt()

internal fun JsonObject.long(key: String): Long = number(key).toLong()

internal fun JsonObject.member(key: String): JsonObject = this[key].asObject()

internal fun JsonObject.memberOrNull(key: String): JsonObject? = this[key]?.asObject()

/** An object whose keys are names of the bundle's own; empty where it is missing. */
internal fun JsonObject.named(key: String): JsonObject = memberOrNull(key).orEmpty()

internal fun JsonObject.list(key: String): List<Any?> = (this[key] as List<*>?).orEmpty()

internal fun JsonObject.members(key: String): List<JsonObject> = list(key).map { it.asObject() }

private fun JsonObject.ints(key: String): IntArray {
    val list = list(key)
    return IntArray(list.size) { (list[it] as Double).toInt() }
}

private fun Any?.asObjects(): List<JsonObject> = (this as List<*>).map { it.asObject() }
