package io.mtuexport.core

/**
 * JSON Schema in the keywords that the contract lists, and no others.
 *
 * @throws IllegalArgumentException for another keyword, or a value that a keyword does not have.
 */
internal class Schema(json: JsonObject) {
    init {
        val unknown = json.keys - KEYWORDS
        require(unknown.isEmpty()) { "unknown keywords of a schema: $unknown" }
    }

    private val type =
        json["type"]?.let { name -> requireNotNull(TYPES[name]) { "unknown type $name" } }
    private val typeName = json["type"]
    private val constant = json["const"]
    private val choices = json["enum"] as List<*>?
    private val anyOf =
        json["anyOf"]?.let { list -> (list as List<*>).map { Schema(it.asObject()) } }
    private val numbers = Limits(json["minimum"], json["maximum"])
    private val above = json["exclusiveMinimum"] as Double?
    private val lengths = Limits(json["minLength"], json["maxLength"])
    private val pattern = json["pattern"]?.let { regexOf(it as String) }
    private val counts = Limits(json["minItems"], json["maxItems"])
    private val items = json["items"]?.let { Schema(it.asObject()) }
    private val keyCounts = Limits(json["minProperties"], json["maxProperties"])
    private val required =
        json["required"]?.let { list -> (list as List<*>).map { it as String } }.orEmpty()
    private val names = json["propertyNames"]?.let { Schema(it.asObject()) }
    private val properties =
        json["properties"]?.asObject().orEmpty().mapValues { Schema(it.value.asObject()) }
    private val others =
        json["additionalProperties"].takeIf { it != false }?.let { Schema(it.asObject()) }
    private val constants = properties.filterKeys { it in required }.mapNotNull { (key, schema) ->
        schema.constant?.let { key to it }
    }
    private val isClosed = json["additionalProperties"] == false

    /** Throws [Damaged] with the place of the first value that the schema refuses. */
    fun check(value: Any?, where: String) {
        anyOf?.let { checkAny(value, it, where) }
        refuseUnless(type == null || type.invoke(value), where) { "it must be $typeName" }
        refuseUnless(constant == null || value == constant, where) { "it must be $constant" }
        refuseUnless(choices == null || value in choices, where) {
            "it must be one of ${choices?.joinToString()}"
        }
        when (value) {
            is Double -> checkNumber(value, where)
            is String -> checkString(value, where)
            is List<*> -> {
                counts.check(value.size.toDouble(), where) { "items" }
                value.forEachIndexed { index, item -> items?.check(item, "$where[$index]") }
            }
            is Map<*, *> -> checkObject(value.asObject(), where)
        }
    }

    /** Tells of the option that came farthest, of those whose constants the value has. */
    private fun checkAny(value: Any?, options: List<Schema>, where: String) {
        var farthest: Damaged? = null
        for (option in options.filterNot { it.isOfOthers(value) }.ifEmpty { options }) {
            try {
                return option.check(value, where)
            } catch (damaged: Damaged) {
                if (damaged.where.length > (farthest?.where?.length ?: 0)) farthest = damaged
            }
        }
        throw farthest ?: Damaged(where, "nothing is legal here")
    }

    /** Whether a constant of the value tells it from this schema, whatever the rest of it is. */
    private fun isOfOthers(value: Any?): Boolean =
        value is Map<*, *> && constants.any { (key, constant) -> value[key] != constant }

    private fun checkNumber(value: Double, where: String) {
        numbers.check(value, where) { "it" }
        refuseUnless(above == null || value > above, where) {
            "it must be above ${Json.write(above)}"
        }
    }

    private fun checkString(value: String, where: String) {
        lengths.check(value.codePointCount(0, value.length).toDouble(), where) { "its length" }
        refuseUnless(pattern == null || pattern.matches(value), where) {
            "${quoted(value)} does not match $pattern"
        }
    }

    private fun checkObject(value: JsonObject, where: String) {
        keyCounts.check(value.size.toDouble(), where) { "keys" }
        val missing = required.firstOrNull { it !in value }
        refuseUnless(missing == null, where) { "$missing is missing" }
        for ((key, inner) in value) {
            names?.check(key, "$where: key ${quoted(key)}")
            val schema = properties[key] ?: others
            refuseUnless(schema != null || !isClosed, where) { "unknown key ${quoted(key)}" }
            schema?.check(inner, "$where.${key.take(LONGEST_KEY)}")
        }
    }

    private class Limits(least: Any?, most: Any?) {
        private val least = least as Double? ?: Double.NEGATIVE_INFINITY
        private val most = most as Double? ?: Double.POSITIVE_INFINITY

        private fun shown(number: Double) =
            if (number.isInfinite()) "any" else Json.write(number)

        fun check(value: Double, where: String, what: () -> String) {
            refuseUnless(value in least..most, where) {
                "${what()} must be ${shown(least)} to ${shown(most)}, got ${shown(value)}"
            }
        }
    }

    companion object {
        /** That of the manifest, which the library ships. */
        val OF_MANIFEST: Schema by lazy {
            val stream = checkNotNull(Schema::class.java.getResourceAsStream(FILE)) {
                "$FILE is missing from the library"
            }
            Schema(Json.parseObject(stream.use { it.readBytes() }, FILE))
        }

        // Its whole path: shrinking an app renames the package of this class, not the file.
        private const val FILE = "/io/mtuexport/core/manifest.schema.json"
        private const val LONGEST_KEY = 80

        private val KEYWORDS = setOf(
            "\$schema", "title", "type", "properties", "required", "items", "additionalProperties",
            "propertyNames", "anyOf", "enum", "const", "minimum", "maximum", "exclusiveMinimum",
            "minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties",
            "maxProperties",
        )

        private val TYPES = mapOf<String, (Any?) -> Boolean>(
            "object" to { it is Map<*, *> },
            "array" to { it is List<*> },
            "string" to { it is String },
            "boolean" to { it is Boolean },
            "null" to { it == null },
            "number" to { it is Double },
            "integer" to { it is Double && it % 1.0 == 0.0 },
        )

        /** A pattern from `^` to `$`, which `matches` means: `$` itself would take a line break. */
        private fun regexOf(pattern: String): Regex {
            require(pattern.startsWith('^') && pattern.endsWith('$')) {
                "a pattern without ^ or $: $pattern"
            }
            return Regex(pattern.drop(1).dropLast(1))
        }
    }
}
