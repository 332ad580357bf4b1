package io.mtuexport.sample

import android.app.Activity
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView

/** A column of views that scrolls. */
internal fun Activity.column(vararg views: View): View {
    val column =
        LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            val edge = (16 * resources.displayMetrics.density).toInt()
            setPadding(edge, edge, edge, edge)
            for (view in views) addView(
                view,
                ViewGroup.LayoutParams.MATCH_PARENT,
                ViewGroup.LayoutParams.WRAP_CONTENT,
            )
        }
    return ScrollView(this).apply {
        addView(column)
        fitsSystemWindows = true
    }
}

internal fun Activity.button(label: String, press: () -> Unit): Button =
    Button(this).apply {
        text = label
        setOnClickListener { press() }
    }

internal fun Activity.label(words: String = ""): TextView = TextView(this).apply { text = words }
