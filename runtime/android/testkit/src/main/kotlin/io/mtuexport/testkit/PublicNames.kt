package io.mtuexport.testkit

import java.io.File
import java.lang.reflect.Modifier
import kotlin.reflect.KCallable
import kotlin.reflect.KClass
import kotlin.reflect.KFunction
import kotlin.reflect.KMutableProperty
import kotlin.reflect.KParameter
import kotlin.reflect.KProperty
import kotlin.reflect.KType
import kotlin.reflect.KVisibility
import kotlin.reflect.full.declaredMembers
import kotlin.reflect.jvm.javaMethod
import kotlin.reflect.jvm.kotlinFunction
import kotlin.reflect.jvm.kotlinProperty

/** The public names of a module, as text: a list that is checked in shows every change of them. */
public object PublicNames {
    /** Those of the module that [type] is of, whose classes lie in a folder. */
    public fun of(type: Class<*>): String {
        val root = File(type.protectionDomain.codeSource.location.toURI())
        return classes(root).flatMap(::linesOf).joinToString("\n", postfix = "\n")
    }

    /**
     * Throws [AssertionError] unless the list in [file] has the names of [type]'s module. After a
     * change that is meant: `mvn test -Dapi.write=true`.
     */
    public fun requireListed(type: Class<*>, file: File = File("api.txt")) {
        val actual = of(type)
        if (System.getProperty("api.write") == "true") file.writeText(actual)
        val listed = file.readLines()
        val lines = actual.trimEnd().lines()
        val differences =
            (listed - lines.toSet()).map { "- $it" } + (lines - listed.toSet()).map { "+ $it" }
        if (differences.isEmpty() && listed == lines) return
        throw AssertionError(
            "$file: run with -Dapi.write=true if this is meant\n" + differences.joinToString("\n")
        )
    }

    /** The module's classes in the order of their names, each before those within it. */
    private fun classes(root: File): List<Class<*>> =
        root
            .walk()
            .filter { it.extension == "class" && "$" !in it.name }
            .map { it.relativeTo(root).path.removeSuffix(".class") }
            .map { it.replace(File.separatorChar, '.') }
            .sorted()
            .flatMap { within(Class.forName(it, false, javaClass.classLoader)) }
            .toList()

    private fun within(type: Class<*>): List<Class<*>> =
        listOf(type) + type.declaredClasses.sortedBy { it.name }.flatMap(::within)

    private fun linesOf(type: Class<*>): List<String> {
        val metadata = type.getAnnotation(Metadata::class.java) ?: return emptyList()
        return when (metadata.kind) {
            KIND_CLASS -> if (isPublic(type.kotlin)) linesOfClass(type.kotlin) else emptyList()
            KIND_FILE -> linesOfFile(type)
            else -> emptyList()
        }
    }

    private fun isPublic(type: KClass<*>): Boolean =
        isVisible(type.visibility) && type.java.enclosingClass?.let { isPublic(it.kotlin) } != false

    private fun isVisible(visibility: KVisibility?) =
        visibility == KVisibility.PUBLIC || visibility == KVisibility.PROTECTED

    private fun linesOfClass(type: KClass<*>): List<String> {
        val kind =
            when {
                type.java.isInterface -> "interface"
                type.java.isEnum -> "enum"
                type.objectInstance != null -> "object"
                type.isSealed -> "sealed class"
                type.isAbstract -> "abstract class"
                type.isOpen -> "open class"
                else -> "class"
            }
        val supertypes = type.supertypes.map(::named).filter { it != "Any" && !type.java.isEnum }
        val head =
            "$kind ${type.qualifiedName}" +
                supertypes.joinToString(", ").let { if (it.isEmpty()) it else " : $it" }
        val constants = type.java.enumConstants.orEmpty().map { "    $it" }
        val hasConstructors = !type.java.isEnum && !type.isSealed
        val constructors =
            if (hasConstructors) type.constructors.filter { isVisible(it.visibility) }
            else emptyList()
        val members =
            type.declaredMembers.filter {
                isVisible(it.visibility) && !(type.java.isEnum && it.name in OF_ENUMS)
            }
        return listOf(head) +
            constants +
            (constructors + members).map { "    ${lineOf(it)}" }.sorted()
    }

    private fun linesOfFile(type: Class<*>): List<String> {
        val functions =
            type.declaredMethods
                .filter { Modifier.isPublic(it.modifiers) }
                .mapNotNull { it.kotlinFunction }
        val properties = type.declaredFields.mapNotNull { it.kotlinProperty }
        return (functions + properties)
            .filter { isVisible(it.visibility) }
            .map { "${type.`package`.name}: ${lineOf(it)}" }
            .sorted()
    }

    private fun lineOf(member: KCallable<*>): String {
        val open = if (member.isAbstract) "abstract " else if (member.isOpen) "open " else ""
        return open +
            when (member) {
                is KMutableProperty<*> -> "var ${member.name}: ${named(member.returnType)}"
                is KProperty<*> -> "val ${member.name}: ${named(member.returnType)}"
                is KFunction<*> -> {
                    val static =
                        if (member.javaMethod?.let { Modifier.isStatic(it.modifiers) } == true)
                            "static "
                        else ""
                    val suspend = if (member.isSuspend) "suspend " else ""
                    val parameters =
                        member.parameters
                            .filter { it.kind == KParameter.Kind.VALUE }
                            .joinToString {
                                "${it.name}: ${named(it.type)}" +
                                    if (it.isOptional) " = ..." else ""
                            }
                    if (member.name == "<init>") "constructor($parameters)"
                    else
                        "$static${suspend}fun ${member.name}($parameters): " +
                            named(member.returnType)
                }
                else -> member.toString()
            }
    }

    /** A type without the packages that every reader knows. */
    private fun named(type: KType): String =
        type.toString().replace(PREFIXES, "").replace(ALIASED, "")

    private val OF_ENUMS = setOf("values", "valueOf", "entries")
    private val PREFIXES =
        Regex("kotlin\\.(collections\\.)?(?=[A-Z])|io\\.mtuexport\\.core\\.(?=[A-Z])")
    private val ALIASED = Regex(" /\\* = .*? \\*/")
    private const val KIND_CLASS = 1
    private const val KIND_FILE = 2
}
