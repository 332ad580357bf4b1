package io.mtuexport.sample

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import java.io.File
import java.io.IOException

/** The app's storage, and trees of others that the user has chosen. */
internal object Storage {
    private var store: BundleStore? = null

    /** The bundles. They stay out of backups: gigabytes that can be copied again. */
    @Synchronized
    fun bundles(context: Context): BundleStore =
        store
            ?: BundleStore(File(context.applicationContext.noBackupFilesDir, "bundles")).also {
                store = it
            }

    /** The name of a tree's folder. */
    fun name(context: Context, tree: Uri): String {
        val root =
            DocumentsContract.buildDocumentUriUsingTree(
                tree,
                DocumentsContract.getTreeDocumentId(tree),
            )
        val columns = arrayOf(DocumentsContract.Document.COLUMN_DISPLAY_NAME)
        return context.contentResolver.query(root, columns, null, null, null)?.use { cursor ->
            if (cursor.moveToFirst()) cursor.getString(0) else null
        } ?: "bundle"
    }

    /** All files of a tree. */
    @Throws(IOException::class)
    fun entries(context: Context, tree: Uri): List<BundleStore.Entry> =
        ArrayList<BundleStore.Entry>().also {
            list(context, tree, DocumentsContract.getTreeDocumentId(tree), "", it)
        }

    private fun list(
        context: Context,
        tree: Uri,
        folder: String,
        path: String,
        entries: MutableList<BundleStore.Entry>,
    ) {
        val resolver = context.contentResolver
        val columns =
            arrayOf(
                DocumentsContract.Document.COLUMN_DOCUMENT_ID,
                DocumentsContract.Document.COLUMN_DISPLAY_NAME,
                DocumentsContract.Document.COLUMN_MIME_TYPE,
                DocumentsContract.Document.COLUMN_SIZE,
            )
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val cursor =
            resolver.query(children, columns, null, null, null)
                ?: throw IOException("$path cannot be listed")
        cursor.use {
            while (cursor.moveToNext()) {
                val id = cursor.getString(0)
                val name = path + cursor.getString(1)
                if (cursor.getString(2) == DocumentsContract.Document.MIME_TYPE_DIR) {
                    list(context, tree, id, "$name/", entries)
                } else {
                    val document = DocumentsContract.buildDocumentUriUsingTree(tree, id)
                    entries +=
                        BundleStore.Entry(name, cursor.getLong(3)) {
                            resolver.openInputStream(document)
                                ?: throw IOException("$name cannot be opened")
                        }
                }
            }
        }
    }
}
