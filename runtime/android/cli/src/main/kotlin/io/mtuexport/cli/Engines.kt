package io.mtuexport.cli

import io.mtuexport.core.PartRuntime
import io.mtuexport.core.Target
import io.mtuexport.executorch.ExecuTorchRuntime
import io.mtuexport.onnx.OnnxRuntime
import java.io.File

/** What runs a bundle here, and its name for people. */
internal class Engine(val runtime: PartRuntime, val name: String)

/** ONNX Runtime is in this program; ExecuTorch's library for Java is looked for. */
internal object Engines {
    val SDK =
        Flag(
            "--executorch-sdk",
            "Folder of ExecuTorch's library for Java (executorch-jvm/assemble.py builds it). " +
                "Default: \$MTU_EXECUTORCH.",
            "DIR",
        )
    private const val PROPERTY = "mtu.executorch"
    private const val VARIABLE = "MTU_EXECUTORCH"
    private const val LIBRARY = "libmtu_executorch_jni.so"

    /** The engine of a target; refuses one that cannot run here. */
    fun of(target: Target, words: Words): Engine {
        require(target, words)
        return if (target == Target.ONNX)
            Engine(OnnxRuntime(), "onnxruntime ${OnnxRuntime.version} (Java)")
        else Engine(ExecuTorchRuntime(), "executorch ${ExecuTorchRuntime.COMPILED_AGAINST} (Java)")
    }

    /** Refuses a target that cannot run here. */
    fun require(target: Target, words: Words) {
        if (target == Target.COREML) {
            throw Refusal(
                "this bundle cannot run here: Core ML is on Apple's systems alone",
                TOOLCHAIN,
            )
        }
        if (target != Target.EXECUTORCH) return
        nameFolder(words)
        val folder = folder(words)
        if (folder.isEmpty()) {
            val line =
                "a bundle for ExecuTorch needs its library for Java: " +
                    "name its folder with ${SDK.name}"
            throw Refusal("$line or \$$VARIABLE", TOOLCHAIN)
        }
        if (!File(folder, LIBRARY).isFile)
            throw Refusal("${quotedPath(folder)} has no $LIBRARY", TOOLCHAIN)
    }

    /** The folder of ExecuTorch's library; empty where none is named. */
    fun folder(words: Words): String =
        words.text(SDK) ?: System.getProperty(PROPERTY) ?: System.getenv(VARIABLE).orEmpty()

    /** Tells `executorch-jvm` the folder. */
    fun nameFolder(words: Words) {
        val folder = folder(words)
        if (folder.isNotEmpty()) System.setProperty(PROPERTY, folder)
    }
}
