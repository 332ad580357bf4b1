"""A task's flow for one request, as the instructions of a runner.

What no part computes (text, pictures, the columns of the table, noise) is worked out here and
becomes tensors; calls of parts and sums are left, which any language runs in a page of code.
Semantics: ``runtime/README.md``, "The flow" and "The loop".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtu_export.bundle import sampler
from mtu_export.bundle.evaluation import Evaluation
from mtu_export.bundle.sampler import Branch
from mtu_export.spec import HISTORY, Guidance, Pass, Schedule, TensorSpec
from mtu_export.spec.flow import Call, Flow, Guided, Latent, Output, Source, Value

Instruction = Mapping[str, Any]
Terms = Sequence[tuple[float, str]]
_PROMPT = Branch(text=True, image=True)


@dataclass(kw_only=True)
class Program:
    """Instructions, the tensors that they begin with, and the registers of the results.

    ``latents`` are the registers of x after each pass; ``picture`` that of the result.
    """

    instructions: list[Instruction] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    latents: list[str] = field(default_factory=list)
    picture: str = ""


@dataclass(frozen=True, kw_only=True)
class Past:
    """States that a proof of single passes begins with: x after each pass, and its guided m."""

    latents: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]


@dataclass(frozen=True)
class _Point:
    """Where a value is asked: the branch, the pass, and the registers of its x and sum."""

    branch: Branch = _PROMPT
    step: Pass | None = None
    latent: str | None = None
    guided: str | None = None
    row: int = 0


class Compiler:
    """Turns one evaluation into a program; ``outputs`` are the shapes of each part's outputs."""

    def __init__(
        self, evaluation: Evaluation, outputs: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> None:
        self.evaluation, self.shapes = evaluation, outputs
        self.flow: Flow = evaluation.flow
        self.program = Program()
        self._registers = 0
        self._named: dict[tuple[str, bool, str], str] = {}  # (call, prompted, output) -> register
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._shape: dict[str, tuple[int, ...]] = {}

    # ------------------------------------------------------------------------------------ results

    def picture(self, schedule: Schedule | None, past: Past | None = None) -> Program:
        """The program of a whole picture.

        With ``past`` each pass begins with these states instead of its own, and the picture is that
        of the last of them: the proof of single passes.
        """
        for call in self.flow.of("once"):
            for prompted in self.evaluation.variants(call):
                self._once(call, prompted)
        last = None if schedule is None else self._loop(schedule, past)
        for call in self.flow.of("end"):
            self._call(call, [_Point(latent=last)], True)
        result = self.flow.picture
        self.program.picture = self._named[result.call, True, result.name]
        return self.program

    # --------------------------------------------------------------------------------- the loop

    def _loop(self, schedule: Schedule, past: Past | None) -> str:
        noise = self.evaluation.request.noise
        assert noise is not None
        terms = [(float(np.float32(schedule.start_noise)), self._tensor(noise[:1]))]
        if self.flow.start is not None:
            picture = self._source(self.flow.start, _Point(), None)
            terms.append((float(np.float32(schedule.start_picture)), picture))
        x, states = self._sum(terms), []
        for index, step in enumerate(schedule.passes):
            scaled = self._operation("scale", x, by=step.input_scale)
            m = self._guided_sum(step, scaled)
            states = [(x, m), *states][:HISTORY]
            terms = []
            for a, b, (each, output) in zip(step.x, step.m, states, strict=False):
                terms += [(a, each)] * bool(a) + [(b, output)] * bool(b)
            if step.noise:
                terms.append((step.noise, self._tensor(noise[index + 1 : index + 2])))
            x = self._sum(terms)
            self.program.latents.append(x)
            if past is not None:
                x = self._tensor(past.latents[index])
                states[0] = (states[0][0], self._tensor(past.outputs[index]))
        return x

    def _guided_sum(self, step: Pass, scaled: str) -> str:
        """The register of m: the branches' predictions, summed and refined."""
        calls, prediction = self.flow.of("pass"), self.flow.prediction
        assert prediction is not None
        specs = self.evaluation.specs
        batch = max(spec.shape[0] for call in calls for spec in specs[call.part])
        branches, predictions = sampler.branches(self.evaluation.guidance), []
        for begin in range(0, len(branches), batch):
            chunk = branches[begin : begin + batch]
            rows = [*chunk, *[chunk[-1]] * (batch - len(chunk))]
            for call in calls:
                points = [_Point(b, step, scaled, None, row) for row, b in enumerate(rows)]
                self._call(call, points, True)
            output = self._named[prediction.call, True, prediction.name]
            predictions += [self._entry(output, row) for row in range(len(chunk))]
        m = predictions[0]
        if len(predictions) > 1:
            factors = guidance_factors(self.evaluation.guidance)
            m = self._sum(list(zip(factors, predictions, strict=True)))
        for call in self.flow.of("guided"):
            self._call(call, [_Point(step=step, latent=scaled, guided=m)], True)
        refined = self.flow.refined
        return m if refined is None else self._named[refined.call, True, refined.name]

    # ------------------------------------------------------------------------------------- calls

    def _once(self, call: Call, prompted: bool) -> None:
        self._call(call, [_Point(branch=Branch(text=prompted, image=True))], prompted)

    def _call(self, call: Call, points: Sequence[_Point], prompted: bool) -> None:
        inputs = {}
        for spec in self.evaluation.specs[call.part]:
            rows = points if spec.shape[0] == len(points) else points[:1]
            values = [self._value(call.inputs[spec.name], point, spec) for point in rows]
            inputs[spec.name] = self._concat(values, 0)
        outputs = {name: self._new(shape) for name, shape in self.shapes[call.part].items()}
        for name, register in outputs.items():
            self._named[call.id, prompted, name] = register
        self._emit(op="call", part=call.part, inputs=inputs, outputs=outputs)

    def _value(self, value: Value, point: _Point, spec: TensorSpec) -> str:
        unprompted = not point.branch.text and self.evaluation.request.negative_prompt is None
        if value.empty is not None and unprompted:
            return self._tensor(self.evaluation.constants[value.empty])
        registers = [self._source(source, point, spec) for source in value.sources]
        return self._concat(registers, value.axis or 0)

    def _source(self, source: Source, point: _Point, spec: TensorSpec | None) -> str:
        if not isinstance(source, Latent | Guided | Output):
            return self._tensor(
                self.evaluation.fixed(source, point.branch, point.step, spec)
            )  # with multiply, divide and only
        register = self._result(source, point)
        branch = {"prompt": point.branch.text, "image": point.branch.image}
        if source.only is not None and not branch[source.only]:
            return self._tensor(np.zeros(self._shape[register], np.float32))
        if source.multiply is not None:
            return self._operation("scale", register, by=source.multiply)
        if source.divide is not None:
            return self._operation("divide", register, by=source.divide)
        return register

    def _result(self, source: Latent | Guided | Output, point: _Point) -> str:
        if isinstance(source, Latent):
            assert point.latent is not None
            return point.latent
        if isinstance(source, Guided):
            assert point.guided is not None
            return point.guided
        once = self.flow.call(source.call).when == "once"
        unprompted = once and source.call in self.flow.prompted and not point.branch.text
        negative = unprompted and self.evaluation.request.negative_prompt is not None
        register = self._named[source.call, not negative, source.name]
        return self._entry(register, point.row if self._shape[register][0] > 1 else 0)

    # --------------------------------------------------------------------------------- registers

    def _new(self, shape: tuple[int, ...]) -> str:
        self._registers += 1
        name = f"r{self._registers}"
        self._shape[name] = tuple(shape)
        return name

    def _tensor(self, array: np.ndarray) -> str:
        """The register of a tensor that is there from the start; equal ones are one."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            name = f"t{len(self._known)}"
            self._known[key] = name
            self._shape[name] = array.shape
            self.program.tensors[name] = array
        return self._known[key]

    def _emit(self, **instruction: Any) -> None:
        self.program.instructions.append(instruction)

    def _operation(self, op: str, register: str, *, by: float) -> str:
        out = self._new(self._shape[register])
        self._emit(op=op, by=float(by), out=out, **{"in": register})
        return out

    def _sum(self, terms: Terms) -> str:
        out = self._new(self._shape[terms[0][1]])
        self._emit(op="sum", terms=[[float(factor), name] for factor, name in terms], out=out)
        return out

    def _entry(self, register: str, row: int) -> str:
        """One entry of the batch; the register itself where it has no other."""
        shape = self._shape[register]
        if shape[0] == 1:
            return register
        out = self._new((1, *shape[1:]))
        self._emit(op="slice", begin=row, out=out, **{"in": register})
        return out

    def _concat(self, registers: Sequence[str], axis: int) -> str:
        if len(registers) == 1:
            return registers[0]
        shape = list(self._shape[registers[0]])
        shape[axis] = sum(self._shape[name][axis] for name in registers)
        out = self._new(tuple(shape))
        self._emit(op="concat", axis=axis, out=out, **{"in": list(registers)})
        return out


def guidance_factors(guidance: Guidance) -> tuple[float, ...]:
    """The factor of each branch's prediction in the guided sum, in the order of the branches."""
    guidance = sampler.effective(guidance)
    text, image = guidance.text or 0.0, guidance.image or 0.0
    return {
        "none": (1.0,),
        "text": (1.0 - text, text),
        "text_image": (1.0 - image, image - text, text),
    }[guidance.kind]
