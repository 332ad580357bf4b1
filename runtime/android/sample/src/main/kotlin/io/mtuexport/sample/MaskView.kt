package io.mtuexport.sample

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.view.MotionEvent
import android.view.View
import kotlin.math.min

/** A picture, with a mask that a finger draws over it. */
internal class MaskView(context: Context) : View(context) {
    /** What is drawn; null where the task takes no mask, or there is no picture. */
    var mask: Mask? = null
        private set

    private var picture: Bitmap? = null
    private var veil: Bitmap? = null
    private val paint = Paint(Paint.FILTER_BITMAP_FLAG)
    private val place = Rect()
    private var lastX = 0f
    private var lastY = 0f

    /** Shows a picture, and begins a mask of its size where one is wanted. */
    fun show(shown: Bitmap?, takesMask: Boolean) {
        picture = shown
        mask = if (takesMask && shown != null) Mask(shown.width, shown.height) else null
        veil = mask?.let { Bitmap.createBitmap(it.width, it.height, Bitmap.Config.ARGB_8888) }
        requestLayout()
        invalidate()
    }

    /** Takes the mask back. */
    fun clear() {
        mask?.clear()
        veil?.eraseColor(0)
        invalidate()
    }

    override fun onMeasure(widthSpec: Int, heightSpec: Int) {
        val width = MeasureSpec.getSize(widthSpec)
        val height = picture?.let { width * it.height / it.width } ?: 0
        setMeasuredDimension(width, height)
        place.set(0, 0, width, height)
    }

    override fun onDraw(canvas: Canvas) {
        picture?.let { canvas.drawBitmap(it, null, place, paint) }
        veil?.let { canvas.drawBitmap(it, null, place, paint) }
    }

    @SuppressLint("ClickableViewAccessibility") // drawing has no click
    override fun onTouchEvent(event: MotionEvent): Boolean {
        val mask = mask ?: return false
        val x = event.x * mask.width / place.width()
        val y = event.y * mask.height / place.height()
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> parent.requestDisallowInterceptTouchEvent(true)
            MotionEvent.ACTION_MOVE -> Unit
            else -> return true
        }
        val isFirst = event.actionMasked == MotionEvent.ACTION_DOWN
        val radius = min(mask.width, mask.height) / 20f
        mask.stroke(if (isFirst) x else lastX, if (isFirst) y else lastY, x, y, radius)
        lastX = x
        lastY = y
        draw(mask)
        return true
    }

    private fun draw(mask: Mask) {
        val colours =
            IntArray(mask.width * mask.height) {
                if (mask[it % mask.width, it / mask.width]) VEIL else 0
            }
        veil?.setPixels(colours, 0, mask.width, 0, 0, mask.width, mask.height)
        invalidate()
    }

    private companion object {
        const val VEIL = 0xB0FFFFFF.toInt()
    }
}
