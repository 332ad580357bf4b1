package io.mtuexport.core.bench

import io.mtuexport.core.ElementType

/** Turns instructions into steps, one after the other: names of registers become slots. */
internal class Resolver(private val parts: List<JobPart>, private val tensors: TensorFile?) {
    val forms = ArrayList<Form>()
    val initial = LinkedHashMap<Int, String>()
    val registers = HashMap<String, Int>()
    val program = ArrayList<Step>()
    private var bytes = 0L

    /** The slot of a register that has been written, or that the file fills. */
    fun slot(where: Fields, name: Any?): Int {
        val register = name as? String ?: where.refuse("a register is named by a string")
        registers[register]?.let {
            return it
        }
        val form =
            tensors?.forms?.get(register)
                ?: where.refuse("nothing has written register '$register' before")
        return write(where, register, form).also { initial[it] = register }
    }

    fun add(step: Fields) {
        program +=
            when (val op = step.string("op")) {
                "call" -> call(step)
                "sum" -> sum(step)
                "scale",
                "divide" -> scale(step, op == "divide")
                "concat" -> concat(step)
                "slice" -> slice(step)
                else -> step.refuse("op '$op' is none of call, sum, scale, divide, concat, slice")
            }
        step.done()
    }

    private fun write(where: Fields, register: String?, form: Form): Int {
        bytes += form.bytes
        if (bytes > LARGEST_REGISTERS) where.refuse("the registers take more than 4 GiB")
        forms += form
        if (register != null) registers[register] = forms.lastIndex
        return forms.lastIndex
    }

    private fun floats(step: Fields, name: Any?): Int {
        val slot = slot(step, name)
        if (forms[slot].type != ElementType.FLOAT32) step.refuse("register '$name' is not float32")
        return slot
    }

    private fun call(step: Fields): Step {
        val name = step.string("part")
        val index = parts.indexOfFirst { it.name == name }
        if (index < 0) step.refuse("there is no part '$name'")
        val part = parts[index]
        val inputs = step.names("inputs")
        val outputs = step.names("outputs")
        val unknown =
            (inputs.keys - part.inputs.map { it.name }.toSet()) +
                (outputs.keys - part.outputs.map { it.name }.toSet())
        if (unknown.isNotEmpty())
            step.refuse("part '$name' has no input or output '${unknown.first()}'")
        val sources =
            part.inputs.map { spec ->
                val register =
                    inputs[spec.name] ?: step.refuse("input '${spec.name}' has no register")
                val slot = slot(step, register)
                val form = Form(spec.type, spec.shape)
                if (forms[slot] != form) {
                    step.refuse(
                        "input '${spec.name}' is $form, register '$register' ${forms[slot]}"
                    )
                }
                slot
            }
        val twice = outputs.values.groupBy { it }.entries.firstOrNull { it.value.size > 1 }
        if (twice != null) step.refuse("'${twice.key}' is twice in outputs")
        val targets =
            part.outputs.map { spec ->
                outputs[spec.name]?.let { write(step, it, Form(spec.type, spec.shape)) }
            }
        return Step.Call(index, sources, targets)
    }

    private fun sum(step: Fields): Step {
        val terms = step.list("terms", 1024)
        if (terms.isEmpty()) step.refuse("terms is empty")
        val factors = DoubleArray(terms.size)
        val slots =
            terms.mapIndexed { index, term ->
                val pair = term as? List<*>
                val factor = Fields.number(pair?.firstOrNull())
                if (pair == null || pair.size != 2 || factor == null) {
                    step.refuse("a term is a list of a finite factor and a register")
                }
                factors[index] = factor
                floats(step, pair[1])
            }
        if (slots.any { forms[it] != forms[slots[0]] }) step.refuse("its registers differ in shape")
        return Step.Sum(factors, slots, write(step, step.string("out"), forms[slots[0]]))
    }

    private fun scale(step: Fields, divides: Boolean): Step {
        val by = step.factor("by")
        if (divides && by == 0f) step.refuse("by", "a number other than 0 is needed")
        val source = floats(step, step.need("in"))
        return Step.Scale(by, divides, source, write(step, step.string("out"), forms[source]))
    }

    private fun concat(step: Fields): Step {
        val slots = step.list("in", 1024).map { slot(step, it) }
        if (slots.isEmpty()) step.refuse("in is empty")
        val first = forms[slots[0]]
        if (first.shape.isEmpty()) step.refuse("its registers have no axis")
        val axis = step.whole("axis", 0, first.shape.size - 1L).toInt()
        var extent = 0L
        for (slot in slots) {
            val form = forms[slot]
            if (form.shape.size != first.shape.size) step.refuse("its registers differ in rank")
            extent += form.shape[axis]
            val aligned = form.shape.clone().also { it[axis] = first.shape[axis] }
            if (Form(form.type, aligned) != first)
                step.refuse("its registers differ in type, or in another axis")
        }
        val shape =
            shapeOf(first.shape.mapIndexed { index, size -> if (index == axis) extent else size })
                ?: step.refuse("the result has more than 1 GiB")
        return Step.Concat(axis, slots, write(step, step.string("out"), Form(first.type, shape)))
    }

    private fun slice(step: Fields): Step {
        val source = slot(step, step.need("in"))
        val form = forms[source]
        if (form.shape.isEmpty()) step.refuse("its register has no axis")
        val begin = step.whole("begin", 0, form.shape[0] - 1L).toInt()
        val shape = form.shape.clone().also { it[0] = 1 }
        return Step.Slice(begin, source, write(step, step.string("out"), Form(form.type, shape)))
    }
}
