package io.mtuexport.sample

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.view.ViewGroup
import android.widget.LinearLayout
import android.widget.TextView
import io.mtuexport.core.ModelBundle
import io.mtuexport.core.Trust
import java.io.File

/** The bundles of this app: choose one, copy one from a folder, remove one. */
public class BundlesActivity : Activity() {
    private lateinit var list: LinearLayout
    private lateinit var status: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        list = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        status = label("A bundle is the folder that mtu-export leaves.")
        setContentView(column(status, button("Copy a bundle from a folder") { choose() }, list))
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.TIRAMISU) {
            requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), 0)
        }
        refresh()
    }

    private fun refresh() {
        list.removeAllViews()
        for (bundle in Storage.bundles(this).bundles()) {
            val open =
                button(bundle.name) {
                    startActivity(
                        Intent(this, RequestActivity::class.java)
                            .putExtra(RequestActivity.BUNDLE, bundle.path)
                    )
                }
            open.setOnLongClickListener {
                remove(bundle)
                true
            }
            list.addView(
                open,
                ViewGroup.LayoutParams.MATCH_PARENT,
                ViewGroup.LayoutParams.WRAP_CONTENT,
            )
        }
    }

    private fun remove(bundle: File) {
        AlertDialog.Builder(this)
            .setMessage("Remove ${bundle.name} from this app?")
            .setNegativeButton(android.R.string.cancel, null)
            .setPositiveButton(android.R.string.ok) { _, _ ->
                Storage.bundles(this).remove(bundle)
                refresh()
            }
            .show()
    }

    private fun choose() {
        startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), TREE)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data
        if (request == TREE && result == RESULT_OK && tree != null)
            Thread({ copy(tree) }, "copy").start()
    }

    private fun copy(tree: Uri) {
        val line =
            try {
                val store = Storage.bundles(this)
                val name = Storage.name(this, tree)
                val folder =
                    store.add(
                        name,
                        Storage.entries(this, tree),
                        progress = { copied, total ->
                            show("copied ${copied / 1_000_000} of ${total / 1_000_000} MB")
                        },
                        check = {
                            show("checking $name")
                            ModelBundle.open(it, Trust.Full())
                        },
                    )
                "${folder.name} is ready"
            } catch (error: Exception) {
                error.message ?: error.toString()
            }
        show(line)
        runOnUiThread { refresh() }
    }

    private fun show(line: String): Unit = runOnUiThread { status.text = line }

    private companion object {
        const val TREE = 1
    }
}
