package io.mtuexport.core.bench

/** An object of the job. Every key is taken once; [done] refuses those that nothing took. */
internal class Fields(value: Any?, private val where: String) {
    private val members: Map<*, *> = value as? Map<*, *> ?: refuse("an object is needed")
    private val taken = HashSet<String>()

    val keys: List<String>
        get() = members.keys.map { it as String }

    fun refuse(why: String): Nothing =
        throw JobFailure(BAD_JOB, "${where.ifEmpty { "the job" }}: $why")

    fun refuse(key: String, why: String): Nothing = throw JobFailure(BAD_JOB, "${at(key)}: $why")

    fun at(key: String): String = if (where.isEmpty()) key else "$where.$key"

    fun has(key: String): Boolean {
        taken += key
        return key in members
    }

    fun need(key: String): Any? {
        if (!has(key)) refuse("key '$key' is missing")
        return members[key]
    }

    fun string(key: String): String {
        val words = need(key) as? String ?: refuse(key, "a string is needed")
        if (words.isEmpty() || words.toByteArray().size > 1024 || '\u0000' in words) {
            refuse(key, "1 to 1,024 bytes are needed, none of them 0")
        }
        return words
    }

    /** A path below the job's folder. */
    fun path(key: String): String {
        val words = string(key)
        if (words.split("/").any { it.isEmpty() || it == "." || it == ".." }) {
            refuse(key, "a relative path without '.' and '..' is needed")
        }
        return words
    }

    /** A whole number; a key with a default may be missing. */
    fun whole(key: String, least: Long, most: Long, otherwise: Long? = null): Long {
        if (otherwise != null && !has(key)) return otherwise
        val number = number(need(key))
        if (number == null || number != Math.rint(number) || number < least || number > most) {
            refuse(key, "a whole number from $least to $most is needed")
        }
        return number.toLong()
    }

    /** A number that float32 holds. */
    fun factor(key: String): Float {
        val number = number(need(key))?.toFloat()
        if (number == null || number.isNaN() || number.isInfinite())
            refuse(key, "a finite number is needed")
        return number
    }

    fun list(key: String, most: Int): List<*> {
        val value = need(key) as? List<*>
        if (value == null || value.size > most) refuse(key, "a list of at most $most is needed")
        return value
    }

    fun truth(key: String): Boolean =
        need(key) as? Boolean ?: refuse(key, "true or false is needed")

    /** An object of strings. */
    fun names(key: String): Map<String, String> {
        val inner = Fields(need(key), at(key))
        return inner.keys.associateWith(inner::string)
    }

    fun done() {
        val unknown = keys.firstOrNull { it !in taken } ?: return
        refuse("key '$unknown' is unknown")
    }

    companion object {
        fun number(value: Any?): Double? = (value as? Number)?.toDouble()
    }
}
