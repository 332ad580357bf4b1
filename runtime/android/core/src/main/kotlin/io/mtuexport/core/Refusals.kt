package io.mtuexport.core

import java.io.IOException
import java.nio.file.InvalidPathException
import kotlin.contracts.ExperimentalContracts
import kotlin.contracts.contract

/**
 * What is wrong with somebody else's file. Who knows which rule it breaks turns it into a
 * [MtuException.BundleRefused] by [underRule].
 */
internal class Damaged(
    val where: String,
    val what: String,
    cause: Throwable? = null,
) : Exception("$where: $what", cause, false, false) // without a stack: a schema throws thousands

/** Throws [Damaged] unless a condition holds. */
@OptIn(ExperimentalContracts::class)
internal inline fun refuseUnless(condition: Boolean, where: String, what: () -> String) {
    contract { returns() implies condition }
    if (!condition) throw Damaged(where, what())
}

/** What [check] returns; what it cannot read or refuses breaks this rule. */
internal inline fun <T> underRule(rule: Int, where: String, check: () -> T): T =
    try {
        check()
    } catch (damaged: Damaged) {
        throw MtuException.BundleRefused(rule, printable(damaged.where), damaged.what, damaged)
    } catch (error: IOException) {
        throw MtuException.BundleRefused(rule, printable(where), reasonOf(error), error)
    } catch (error: InvalidPathException) {
        throw MtuException.BundleRefused(rule, where, "this system has no such file name", error)
    }

/** A text with a space in place of each line end and of whatever else moves a terminal's cursor. */
internal fun oneLine(text: String): String =
    text.map { if (Character.isISOControl(it) || it in LINE_ENDS) ' ' else it }.joinToString("").trim()

private const val LINE_ENDS = "\u2028\u2029"

/** One line of an error. */
internal fun reasonOf(error: Throwable): String {
    val line = error.message?.lineSequence()?.firstOrNull { it.isNotBlank() } ?: "no reason given"
    return "${error.javaClass.simpleName}: ${printable(line.take(LONGEST_REASON))}"
}

/** Text of somebody else's on one line that no terminal takes for more than text. */
internal fun printable(text: String): String =
    text.map { if (it in ' '..'~') it else '?' }.joinToString("")

/** A name of somebody else's file in one printable piece of at most 80 characters. */
internal fun quoted(name: String?): String {
    if (name == null) return "null"
    val plain = printable(name.take(LONGEST_NAME + 1))
    return if (plain.length > LONGEST_NAME) {
        "\"${plain.take(LONGEST_NAME - 4)} ...\""
    } else {
        "\"$plain\""
    }
}

private const val LONGEST_REASON = 300
private const val LONGEST_NAME = 78
