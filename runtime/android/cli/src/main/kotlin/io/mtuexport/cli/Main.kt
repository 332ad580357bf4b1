package io.mtuexport.cli

import java.io.File
import java.io.FileDescriptor
import java.io.FileOutputStream
import java.io.IOException
import java.io.PrintStream
import java.lang.reflect.Proxy
import kotlin.system.exitProcess

private val COMMANDS = listOf(VerifyCommand, RunCommand, BenchCommand, JobCommand)

/** `java -jar mtu-cli.jar COMMAND ...`: flags and exit codes as of `mtu-export`. */
public fun main(line: Array<String>) {
    val out = PrintStream(FileOutputStream(FileDescriptor.out).buffered(), false, "UTF-8")
    val err = PrintStream(FileOutputStream(FileDescriptor.err), true, "UTF-8")
    onInterrupt { code ->
        Drafts.delete {
            err.println("error: interrupted; nothing was written")
            Runtime.getRuntime().halt(code)
        }
    }
    val code = ended(asTyped(line.toList()), out, err)
    out.flush()
    exitProcess(if (out.checkError()) PIPE_CLOSED else code)
}

/**
 * Calls [end] with 128 and the signal's number on Ctrl-C and `kill`; it halts the process.
 *
 * At once: ONNX Runtime's own hook at the end of a process frees what a part that runs still uses.
 * Java's class for signals is not of its public library, so it is looked up; without it the
 * process ends as Java ends it.
 */
private fun onInterrupt(end: (Int) -> Unit) {
    try {
        val signal = Class.forName("sun.misc.Signal")
        val handler = Class.forName("sun.misc.SignalHandler")
        val handle = signal.getMethod("handle", signal, handler)
        for ((name, code) in mapOf("INT" to INTERRUPTED, "TERM" to TERMINATED)) {
            val ending =
                Proxy.newProxyInstance(handler.classLoader, arrayOf(handler)) { _, _, _ ->
                    end(code)
                }
            handle.invoke(null, signal.getConstructor(String::class.java).newInstance(name), ending)
        }
    } catch (_: ReflectiveOperationException) {
        return
    }
}

/** Runs a command line: one line on [err] and the exit code of the error's kind. */
internal fun ended(line: List<String>, out: PrintStream, err: PrintStream): Int =
    try {
        begin(line, out, err)
    } catch (error: Throwable) {
        if ("-v" in line || "--verbose" in line) error.printStackTrace(err)
        val (text, code) = described(error)
        err.println("error: ${plain(text)}")
        code
    }

private fun begin(line: List<String>, out: PrintStream, err: PrintStream): Int {
    val first = line.firstOrNull() ?: "--help"
    when {
        first == "--help" -> out.print(overview())
        first == "--version" -> out.println(VERSION)
        first.startsWith("-") -> throw Refusal("No such option: $first")
        else -> {
            val command =
                COMMANDS.firstOrNull { it.name == first }
                    ?: throw unknown("command", first, COMMANDS.map(Command::name))
            val words = Words.of(line.drop(1), command.flags)
            if (words.has(Command.HELP)) out.print(command.describe())
            else return command.run(words, out, err)
        }
    }
    return if (line.isEmpty()) PLAN else 0
}

private fun overview(): String {
    val lines = COMMANDS.map { "  ${it.name.padEnd(8)} ${it.help.substringBefore('\n')}" }
    return "Usage: java -jar mtu-cli.jar COMMAND ...\n\n" +
        "Bundles of mtu-export on a Java machine.\n\n" +
        lines.joinToString("\n", postfix = "\n\n") +
        "COMMAND --help lists its flags; --version prints the version.\n"
}

/** The version of this program; `0` where it does not run from its jar. */
internal val VERSION: String
    get() = Command::class.java.`package`?.implementationVersion ?: "0"

/**
 * The words as they were typed. Java reads them in the locale's encoding, and in the locale of a
 * bare container every letter beyond ASCII would be a question mark: Linux tells the bytes.
 */
internal fun asTyped(
    line: List<String>,
    commandLine: File = File("/proc/self/cmdline"),
): List<String> {
    if (System.getProperty("sun.jnu.encoding").equals("UTF-8", ignoreCase = true)) return line
    val all =
        try {
            String(commandLine.readBytes(), Charsets.UTF_8).removeSuffix("\u0000").split('\u0000')
        } catch (_: IOException) {
            return line
        }
    val typed = all.takeLast(line.size)
    val isSame =
        typed.size == line.size &&
            typed.zip(line).all { (mine, java) -> mine == java || mine.any { it > '~' } }
    return if (isSame) typed else line
}
