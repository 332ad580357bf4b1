package io.mtuexport.sample

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.net.Uri
import android.os.Bundle
import android.text.InputType
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.Spinner
import android.widget.TextView
import io.mtuexport.android.Pictures
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.PictureKind
import io.mtuexport.core.RgbaImage
import io.mtuexport.core.TableKey
import io.mtuexport.core.TaskInfo
import io.mtuexport.core.Trust
import java.io.File

/** A request to a bundle, what becomes of it, and the check of the bundle on this device. */
public class RequestActivity : Activity() {
    private lateinit var folder: File
    private lateinit var tasks: Spinner
    private lateinit var steps: Spinner
    private lateinit var prompt: EditText
    private lateinit var negative: EditText
    private lateinit var seed: EditText
    private lateinit var pick: Button
    private lateinit var clear: Button
    private lateinit var drawing: MaskView
    private lateinit var start: Button
    private lateinit var verify: Button
    private lateinit var cancel: Button
    private lateinit var status: TextView
    private lateinit var result: ImageView
    private var bundle: ModelBundle? = null
    private var picture: RgbaImage? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        folder = File(intent.getStringExtra(BUNDLE).orEmpty())
        tasks = Spinner(this)
        steps = Spinner(this)
        prompt = EditText(this).apply { hint = "prompt" }
        negative = EditText(this).apply { hint = "negative prompt" }
        seed =
            EditText(this).apply {
                hint = "seed"
                inputType = InputType.TYPE_CLASS_NUMBER
            }
        pick = button("Choose a picture") { pick() }
        drawing = MaskView(this)
        clear = button("Clear the mask") { drawing.clear() }
        start = button("Make a picture") { start() }
        verify = button("Check on this device") { verify() }
        cancel = button("Cancel") { WorkService.cancel(this) }
        status = label("opening ${folder.name}")
        result = ImageView(this).apply { adjustViewBounds = true }
        setContentView(
            column(
                tasks,
                prompt,
                negative,
                pick,
                drawing,
                clear,
                steps,
                seed,
                start,
                verify,
                cancel,
                status,
                result,
            )
        )
        enable(isBusy = true)
        Thread({ open() }, "open").start()
    }

    override fun onStart() {
        super.onStart()
        Desk.listener = ::show
    }

    override fun onStop() {
        Desk.listener = null
        super.onStop()
    }

    private fun open() {
        try {
            val receipt = Storage.bundles(this).receipt(folder)
            val opened = ModelBundle.open(folder, Trust.Receipt(receipt))
            runOnUiThread { ready(opened) }
        } catch (error: Exception) {
            runOnUiThread { status.text = error.message ?: error.toString() }
        }
    }

    private fun ready(opened: ModelBundle) {
        bundle = opened
        tasks.adapter = items(opened.tasks.map { it.name })
        tasks.onItemSelectedListener =
            object : AdapterView.OnItemSelectedListener {
                override fun onItemSelected(
                    parent: AdapterView<*>?,
                    view: View?,
                    position: Int,
                    id: Long,
                ): Unit = choose()

                override fun onNothingSelected(parent: AdapterView<*>?) {}
            }
        status.text = Desk.progress?.line.orEmpty()
        enable(isBusy = Desk.progress?.isOver == false)
    }

    private fun items(words: List<String>) =
        ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, words)

    private fun task(): TaskInfo? = bundle?.tasks?.getOrNull(tasks.selectedItemPosition)

    private fun pictureName(task: TaskInfo) =
        task.pictures.entries.firstOrNull { it.value != PictureKind.MASK }?.key

    private fun maskName(task: TaskInfo) =
        task.pictures.entries.firstOrNull { it.value == PictureKind.MASK }?.key

    private fun choose() {
        val task = task() ?: return
        prompt.visibility = visible(task.takesPrompt)
        negative.visibility = visible(task.takesNegativePrompt)
        pick.visibility = visible(pictureName(task) != null)
        drawing.visibility = visible(pictureName(task) != null)
        clear.visibility = visible(maskName(task) != null)
        steps.adapter = items(task.allowed.map { RequestForm.label(it) })
        val usual = TableKey(task.steps, task.strength)
        steps.setSelection(maxOf(0, task.allowed.indexOf(usual)))
        shown(picture)
    }

    private fun visible(isShown: Boolean) = if (isShown) View.VISIBLE else View.GONE

    private fun shown(image: RgbaImage?) {
        val task = task() ?: return
        drawing.show(image?.let(::bitmap), takesMask = maskName(task) != null)
    }

    private fun bitmap(image: RgbaImage): Bitmap {
        val colours =
            IntArray(image.width * image.height) { at ->
                val pixel = 4 * at
                fun level(channel: Int) = image.pixels[pixel + channel].toInt() and 255
                level(3) shl 24 or (level(0) shl 16) or (level(1) shl 8) or level(2)
            }
        return Bitmap.createBitmap(colours, image.width, image.height, Bitmap.Config.ARGB_8888)
    }

    private fun pick() {
        val intent =
            Intent(Intent.ACTION_OPEN_DOCUMENT)
                .addCategory(Intent.CATEGORY_OPENABLE)
                .setType("image/*")
        startActivityForResult(intent, PICTURE)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data
        if (request != PICTURE || result != RESULT_OK || uri == null) return
        status.text = "reading the picture"
        Thread({ read(uri) }, "picture").start()
    }

    private fun read(uri: Uri) {
        try {
            val read = Pictures.read(contentResolver, uri)
            runOnUiThread {
                picture = read
                status.text = ""
                shown(read)
            }
        } catch (error: Exception) {
            runOnUiThread { status.text = error.message ?: error.toString() }
        }
    }

    private fun start() {
        val task = task() ?: return
        val form =
            RequestForm(
                prompt = prompt.text.toString(),
                negativePrompt = negative.text.toString(),
                seed = seed.text.toString(),
                table = task.allowed.getOrNull(steps.selectedItemPosition),
                picture = picture,
                mask = drawing.mask?.takeUnless { it.isEmpty },
            )
        try {
            run(Work.Picture(folder, task.name, form.request(task)))
        } catch (error: IllegalArgumentException) {
            status.text = error.message
        }
    }

    private fun verify() {
        val task = task() ?: return
        run(Work.Verification(folder, task.name))
    }

    private fun run(work: Work) {
        result.setImageDrawable(null)
        enable(isBusy = true)
        WorkService.start(this, work)
    }

    private fun show(progress: Progress) {
        status.text = progress.line
        progress.picture?.let { result.setImageBitmap(Pictures.toBitmap(it)) }
        if (bundle != null) enable(isBusy = !progress.isOver)
    }

    private fun enable(isBusy: Boolean) {
        for (view in listOf(tasks, pick, clear, start, verify)) view.isEnabled = !isBusy
        cancel.isEnabled = isBusy && bundle != null
    }

    internal companion object {
        const val BUNDLE = "bundle"
        private const val PICTURE = 1
    }
}
