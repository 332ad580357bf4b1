"""The evaluation of a flow for one request: once calls, guided passes, the picture.

What runs a part is a session, in any runtime or in PyTorch, so the exporter's reference and a
bundle's loop are this same code. Format: ``runtime/README.md``, "The flow".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtu_export.bundle import images, sampler
from mtu_export.bundle.sampler import Branch
from mtu_export.spec import Arrays, Guidance, Pass, PlanError, Session, TensorSpec
from mtu_export.spec.flow import (
    Call,
    Column,
    Constant,
    Flow,
    Guided,
    Inputs,
    Latent,
    Number,
    Output,
    Picture,
    Source,
    Tensor,
    Tokens,
    Value,
)

Tokenize = Callable[[str, str], np.ndarray]
"""``(tokenizer's folder, prompt) -> ids [1, length]``, int32."""
Specs = Mapping[str, Sequence[TensorSpec]]
"""Inputs of each part, for the task."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a picture is made of.

    ``pictures`` by name are [1, 3, H, W] in their range, grey and masks [1, 1, H, W]; ``tensors``
    and ``numbers`` as the task's inputs name them. ``noise`` is standard normal, [1 + P, C, h, w]
    of P passes, or [1, C, h, w] where no pass draws. ``guidance`` replaces the task's scales.
    """

    prompt: str
    noise: np.ndarray | None
    steps: int
    negative_prompt: str | None = None
    strength: float | None = None
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    guidance: Guidance | None = None


_PROMPT = Branch(text=True, image=True)


@dataclass(frozen=True)
class _Point:
    """Where a source is asked: the branch, and in a pass its table row, x and calls so far."""

    branch: Branch = _PROMPT
    step: Pass | None = None
    latent: np.ndarray | None = None
    guided: np.ndarray | None = None
    outputs: Mapping[str, Arrays] = field(default_factory=dict)
    row: int = 0


class Evaluation:
    """One request on its way through a flow.

    ``outputs`` are those of the once calls, by call and whether they are the prompt's; the
    negative prompt's are under False. They may be put in by hand instead of :meth:`run_once`.
    """

    def __init__(
        self,
        flow: Flow,
        inputs: Inputs,
        specs: Specs,
        constants: Mapping[str, np.ndarray],
        guidance: Guidance,
        request: Request,
        tokenize: Tokenize,
    ) -> None:
        self.flow, self.inputs, self.specs, self.constants = flow, inputs, specs, constants
        self.guidance, self.request, self.tokenize = guidance, request, tokenize
        self.outputs: dict[tuple[str, bool], Arrays] = {}
        self._prompted = flow.prompted

    # ------------------------------------------------------------------------------ once calls

    def run_once(self, call: Call, session: Session) -> None:
        """Make a once call for the prompt and, where it matters, for the negative prompt."""
        for prompted in self.variants(call):
            point = _Point(branch=Branch(text=prompted, image=True))
            self.outputs[call.id, prompted] = session(self._single(call, point))

    def call_inputs(self, call: Call) -> dict[str, np.ndarray]:
        """The inputs of a once call for the prompt."""
        return self._single(call, _Point())

    def has(self, value: Value) -> bool:
        """Whether the once calls that a value depends on have been made."""
        outputs = (source for source in value.sources if isinstance(source, Output))
        return all((source.call, True) in self.outputs for source in outputs)

    def value(self, value: Value) -> np.ndarray:
        """A value of the prompt that depends on once calls alone, [1, ...]."""
        return self._value(value, _Point(), None)

    def fixed(
        self, source: Source, branch: Branch, step: Pass | None, spec: TensorSpec | None
    ) -> np.ndarray:
        """A source that no part makes, [1, ...], in one branch of a pass."""
        return self._source(source, _Point(branch=branch, step=step), spec)

    def variants(self, call: Call) -> tuple[bool, ...]:
        """For which texts a once call is made: the prompt, the negative prompt."""
        negative = self.request.negative_prompt is not None
        needs = call.id in self._prompted and not all(
            branch.text for branch in sampler.branches(self.guidance)
        )
        return (True, False) if negative and needs else (True,)

    # ---------------------------------------------------------------------------------- passes

    def start(self) -> np.ndarray | None:
        """What the loop begins from beside noise, [1, C, h, w]; None where it is noise alone."""
        if self.flow.start is None:
            return None
        return self._source(self.flow.start, _Point(), None)

    def denoiser(self, sessions: Mapping[str, Session]) -> sampler.Denoise:
        """The guided prediction m [1, C, h, w] of a pass; ``sessions`` of its parts, by name."""
        prediction = self.flow.prediction
        assert prediction is not None
        branches = sampler.branches(self.guidance)
        calls = self.flow.of("pass")
        batch = max(spec.shape[0] for call in calls for spec in self.specs[call.part])

        def denoise(latent: np.ndarray, step: Pass) -> np.ndarray:
            predictions: list[np.ndarray] = []
            for begin in range(0, len(branches), batch):
                chunk = branches[begin : begin + batch]
                rows = [*chunk, *[chunk[-1]] * (batch - len(chunk))]
                outputs: dict[str, Arrays] = {}
                for call in calls:
                    points = [
                        _Point(branch, step, latent, None, outputs, row)
                        for row, branch in enumerate(rows)
                    ]
                    outputs[call.id] = sessions[call.part](self._batched(call, points))
                output = outputs[prediction.call][prediction.name]
                predictions += [output[row : row + 1] for row in range(len(chunk))]
            guided = sampler.guide(self.guidance, predictions)
            return self._refine(guided, latent, step, sessions)

        return denoise

    def _refine(
        self, guided: np.ndarray, latent: np.ndarray, step: Pass, sessions: Mapping[str, Session]
    ) -> np.ndarray:
        """The guided sum, or what the guided calls make of it."""
        outputs: dict[str, Arrays] = {}
        for call in self.flow.of("guided"):
            point = _Point(step=step, latent=latent, guided=guided, outputs=outputs)
            outputs[call.id] = sessions[call.part](self._single(call, point))
        refined = self.flow.refined
        return guided if refined is None else outputs[refined.call][refined.name]

    # ----------------------------------------------------------------------------------- picture

    def picture(self, latent: np.ndarray | None, open_part: Callable[[str], Session]) -> np.ndarray:
        """The result [1, 3, H, W], not clipped; parts of end calls are opened one at a time."""
        outputs: dict[str, Arrays] = {}
        for call in self.flow.of("end"):
            point = _Point(latent=latent, outputs=outputs)
            outputs[call.id] = open_part(call.part)(self._single(call, point))
        result = self.flow.picture
        end_or_once = outputs.get(result.call) or self.outputs[result.call, True]
        return end_or_once[result.name]

    # ------------------------------------------------------------------------------------ values

    def _single(self, call: Call, point: _Point) -> dict[str, np.ndarray]:
        """The inputs of a call of batch 1."""
        specs = self.specs[call.part]
        return {spec.name: self._value(call.inputs[spec.name], point, spec) for spec in specs}

    def _batched(self, call: Call, points: Sequence[_Point]) -> dict[str, np.ndarray]:
        """The inputs of a pass call: one row for each branch, or one value for all."""
        inputs = {}
        for spec in self.specs[call.part]:
            rows = points if spec.shape[0] == len(points) else points[:1]
            values = [self._value(call.inputs[spec.name], point, spec) for point in rows]
            inputs[spec.name] = np.concatenate(values) if len(values) > 1 else values[0]
        return inputs

    def _value(self, value: Value, point: _Point, spec: TensorSpec | None) -> np.ndarray:
        unprompted = not point.branch.text and self.request.negative_prompt is None
        if value.empty is not None and unprompted:
            return self.constants[value.empty]
        arrays = [self._source(source, point, spec) for source in value.sources]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, value.axis or 0)

    def _source(self, source: Source, point: _Point, spec: TensorSpec | None) -> np.ndarray:
        array = self._raw(source, point, spec)
        branch = {"prompt": point.branch.text, "image": point.branch.image}
        if source.only is not None and not branch[source.only]:
            return np.zeros_like(array)
        if source.multiply is not None:
            return array * np.float32(source.multiply)
        return array if source.divide is None else array / np.float32(source.divide)

    def _raw(self, source: Source, point: _Point, spec: TensorSpec | None) -> np.ndarray:
        """A source before ``multiply``, ``divide`` and ``only``, [1, ...]."""
        match source:
            case Latent():
                assert point.latent is not None
                return point.latent
            case Guided():
                assert point.guided is not None
                return point.guided
            case Column():
                assert point.step is not None
                assert spec is not None
                return _filled(point.step.columns[source.name], spec)
            case Number():
                assert spec is not None
                default = self.inputs.numbers[source.name].default
                return _filled(self.request.numbers.get(source.name, default), spec)
            case Constant():
                return self.constants[source.name]
            case Tokens():
                texts = (self.request.negative_prompt or "", self.request.prompt)
                return self.tokenize(source.tokenizer, texts[point.branch.text])
            case Picture():
                return self._picture(source)
            case Tensor():
                return self._given(self.request.tensors, source.name)
            case Output():
                return self._output(source, point)

    def _output(self, source: Output, point: _Point) -> np.ndarray:
        if source.call in point.outputs:
            array = point.outputs[source.call][source.name]
            return array if len(array) == 1 else array[point.row : point.row + 1]
        unprompted = source.call in self._prompted and not point.branch.text
        negative = unprompted and self.request.negative_prompt is not None
        return self.outputs[source.call, not negative][source.name]

    def _picture(self, source: Picture) -> np.ndarray:
        picture = self._given(self.request.pictures, source.name)
        if source.outside is not None:
            mask = self._given(self.request.pictures, source.outside)
            picture = images.masked_image(picture, mask)
        if source.every is not None:
            return np.ascontiguousarray(picture[..., :: source.every, :: source.every])
        return picture if source.mean is None else images.cell_means(picture, source.mean)

    def _given(self, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in arrays:
            raise PlanError(f"the request has no {name!r}, which the task needs")
        return arrays[name]


def _filled(value: float | Sequence[float], spec: TensorSpec) -> np.ndarray:
    """A number in the shape of one row of an input; a vector of n numbers is [1, n]."""
    array = np.asarray(value, np.float32)
    return array[None] if array.ndim else np.full((1, *spec.shape[1:]), array)
