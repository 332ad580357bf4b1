package org.pytorch.executorch

/**
 * ExecuTorch refused or failed.
 *
 * @property errorCode The code of its `runtime/core/error.h`; constants are in the companion.
 */
public open class ExecutorchRuntimeException(
    public val errorCode: Int,
    details: String?,
    cause: Throwable? = null,
) :
    RuntimeException(
        "ExecuTorch error 0x%02x (%s): %s".format(errorCode, meaning(errorCode), details),
        cause,
    ) {
    /** What is given does not fit the file or the method. */
    public class ExecutorchInvalidArgumentException(details: String?) :
        ExecutorchRuntimeException(INVALID_ARGUMENT, details)

    /** The codes. */
    public companion object {
        /** No error. */
        public const val OK: Int = 0x00

        /** Internal error. */
        public const val INTERNAL: Int = 0x01

        /** The operation does not fit the state. */
        public const val INVALID_STATE: Int = 0x02

        /** Not supported. */
        public const val NOT_SUPPORTED: Int = 0x10

        /** Not implemented. */
        public const val NOT_IMPLEMENTED: Int = 0x11

        /** An argument does not fit. */
        public const val INVALID_ARGUMENT: Int = 0x12

        /** An object has the wrong type. */
        public const val INVALID_TYPE: Int = 0x13

        /** An operator is not among the kernels. */
        public const val OPERATOR_MISSING: Int = 0x14

        /** Something is not there. */
        public const val NOT_FOUND: Int = 0x20

        /** Memory is full. */
        public const val MEMORY_ALLOCATION_FAILED: Int = 0x21

        /** A resource cannot be accessed. */
        public const val ACCESS_FAILED: Int = 0x22

        /** The file is no program, damaged, or of another version. */
        public const val INVALID_PROGRAM: Int = 0x23

        /** External data are damaged. */
        public const val INVALID_EXTERNAL_DATA: Int = 0x24

        /** Resources are used up. */
        public const val OUT_OF_RESOURCES: Int = 0x25

        /** A delegate is of another version. */
        public const val DELEGATE_INVALID_COMPATIBILITY: Int = 0x30

        /** A delegate has no memory. */
        public const val DELEGATE_MEMORY_ALLOCATION_FAILED: Int = 0x31

        /** A delegate's handle is not valid. */
        public const val DELEGATE_INVALID_HANDLE: Int = 0x32

        private val MEANINGS =
            mapOf(
                OK to "no error",
                INTERNAL to "internal error",
                INVALID_STATE to "invalid state",
                NOT_SUPPORTED to "not supported",
                NOT_IMPLEMENTED to "not implemented",
                INVALID_ARGUMENT to "invalid argument",
                INVALID_TYPE to "invalid type",
                OPERATOR_MISSING to "an operator is missing",
                NOT_FOUND to "not found",
                MEMORY_ALLOCATION_FAILED to "out of memory",
                ACCESS_FAILED to "no access",
                INVALID_PROGRAM to "invalid program",
                INVALID_EXTERNAL_DATA to "invalid external data",
                OUT_OF_RESOURCES to "out of resources",
                DELEGATE_INVALID_COMPATIBILITY to "a delegate of another version",
                DELEGATE_MEMORY_ALLOCATION_FAILED to "a delegate is out of memory",
                DELEGATE_INVALID_HANDLE to "a delegate's handle is invalid",
            )

        private fun meaning(code: Int): String = MEANINGS[code] ?: "unknown"

        /** The exception of a code: [ExecutorchInvalidArgumentException] of [INVALID_ARGUMENT]. */
        @JvmStatic
        public fun makeExecutorchException(errorCode: Int, details: String?): RuntimeException =
            if (errorCode == INVALID_ARGUMENT) ExecutorchInvalidArgumentException(details)
            else ExecutorchRuntimeException(errorCode, details)
    }
}
