package io.mtuexport.testkit

import java.io.DataInputStream
import java.io.File

/** The constants of a compiled class: what it names of others. */
public class ClassFile(file: File) {
    /** Its texts: names, descriptors, strings. */
    public val texts: Collection<String>

    /**
     * Methods and fields that it uses, as `owner.name descriptor`, with `/` in names of classes.
     */
    public val members: Set<String>

    init {
        val words = HashMap<Int, String>()
        val pairs = HashMap<Int, Pair<Int, Int>>() // of classes the name alone
        val places = ArrayList<Int>()
        DataInputStream(file.inputStream().buffered()).use { input ->
            check(input.readInt() == 0xCAFEBABE.toInt()) { "$file is no class file" }
            input.readInt() // the version
            val count = input.readUnsignedShort()
            var index = 1
            while (index < count) {
                val tag = input.readUnsignedByte()
                when (tag) {
                    TEXT -> words[index] = input.readUTF()
                    CLASS -> pairs[index] = Pair(input.readUnsignedShort(), 0)
                    FIELD,
                    METHOD,
                    INTERFACE_METHOD,
                    NAME_AND_TYPE ->
                        pairs[index] = Pair(input.readUnsignedShort(), input.readUnsignedShort())
                    LONG,
                    DOUBLE -> input.skipBytes(8)
                    METHOD_HANDLE -> input.skipBytes(3)
                    STRING,
                    METHOD_TYPE,
                    MODULE,
                    PACKAGE -> input.skipBytes(2)
                    INTEGER,
                    FLOAT,
                    DYNAMIC,
                    INVOKE_DYNAMIC -> input.skipBytes(4)
                    else -> error("$file has a constant of kind $tag")
                }
                if (tag in FIELD..INTERFACE_METHOD) places += index
                index += if (tag == LONG || tag == DOUBLE) 2 else 1
            }
        }
        texts = words.values
        members =
            places.mapTo(HashSet()) { place ->
                val (owner, nameAndType) = pairs.getValue(place)
                val (name, descriptor) = pairs.getValue(nameAndType)
                "${words.getValue(pairs.getValue(owner).first)}.${words.getValue(name)} ${words.getValue(descriptor)}"
            }
    }

    private companion object {
        const val TEXT = 1
        const val INTEGER = 3
        const val FLOAT = 4
        const val LONG = 5
        const val DOUBLE = 6
        const val CLASS = 7
        const val STRING = 8
        const val FIELD = 9
        const val METHOD = 10
        const val INTERFACE_METHOD = 11
        const val NAME_AND_TYPE = 12
        const val METHOD_HANDLE = 15
        const val METHOD_TYPE = 16
        const val DYNAMIC = 17
        const val INVOKE_DYNAMIC = 18
        const val MODULE = 19
        const val PACKAGE = 20
    }
}
