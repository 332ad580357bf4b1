package io.mtuexport.cli

import java.io.PrintStream

/** A command of the program. */
internal abstract class Command(
    val name: String,
    /** What follows the name in `--help`. */
    val usage: String,
    val help: String,
    private val own: List<Flag>,
) {
    val flags: List<Flag>
        get() = own + listOf(JSON, VERBOSE, HELP)

    /**
     * Does it; returns the exit code. Throws a [Refusal] or an [io.mtuexport.core.MtuException].
     */
    abstract fun run(words: Words, out: PrintStream, err: PrintStream): Int

    fun describe(): String {
        val lines =
            flags.map { flag ->
                val spelling = flag.names.joinToString(", ") + (flag.metavar?.let { " $it" } ?: "")
                "  $spelling\n      ${flag.help}"
            }
        return "Usage: java -jar mtu-cli.jar $name $usage\n\n$help\n\n${lines.joinToString("\n")}\n"
    }

    companion object {
        val JSON = Flag("--json", "Print JSON on standard output, and nothing else.")
        val FORCE = Flag("--force", "Replace an existing output.")
        val VERBOSE = Flag(listOf("-v", "--verbose"), "Show each step, and the trace of an error.")
        val HELP = Flag("--help", "Show this and exit.")
        val OUTPUT = listOf("-o", "--output")

        /** The words that belong to no flag, which are [name]s. */
        fun names(words: Words, name: String): List<String> =
            words.free.ifEmpty { throw Refusal("Missing argument '$name'.") }

        /** The one word that belongs to no flag. */
        fun only(words: Words, name: String): String {
            if (words.free.size > 1)
                throw Refusal(
                    "Got unexpected extra argument(s) (${words.free.drop(1).joinToString(" ")})"
                )
            return names(words, name).single()
        }
    }
}
