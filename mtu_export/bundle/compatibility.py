"""Whether the parts of a bundle fit together in the flow of a task.

Decided from the manifest and the constants, before any part is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mtu_export.bundle.paths import MANIFEST
from mtu_export.spec import BundleError, TensorSpec
from mtu_export.spec.flow import (
    Call,
    Column,
    Constant,
    Guided,
    Latent,
    Number,
    Output,
    OutputName,
    Picture,
    Source,
    Tensor,
    Tokens,
    Value,
)

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle
    from mtu_export.bundle.manifest import TaskRecord

_LARGEST_BATCH = 64
_LONGEST = 1024
"""Tokens of a prompt."""

Shape = tuple[int, ...]


def validate_wiring(bundle: Bundle, task: TaskRecord, constants: Mapping[str, np.ndarray]) -> None:
    """Refuse sizes, parts and constants with which this task's flow cannot run.

    Raises ``BundleError``, which names the call and the input.
    """
    _Wiring(bundle, task, constants).validate()


class _Wiring:
    """The shapes of everything in one flow."""

    def __init__(
        self, bundle: Bundle, task: TaskRecord, constants: Mapping[str, np.ndarray]
    ) -> None:
        self.task, self.flow, self.constants = task, task.flow, constants
        self.parts = {part.name: part for part in bundle.parts if part.name in task.flow.parts}
        self.tokens = {record.path: record.length for record in bundle.manifest.tokenizers}
        image, latent = bundle.manifest.image, bundle.manifest.latent
        self.size = (image.height, image.width)
        self.latent: Shape | None = None
        if latent is not None:
            if any(side % latent.factor for side in self.size):
                raise BundleError(
                    f"{MANIFEST}: image and latent: {self.size} is no multiple of {latent.factor}"
                )
            self.latent = (1, latent.channels, *(side // latent.factor for side in self.size))
        self.columns, self.has_tables = self._columns(bundle), bool(bundle.schedules)
        self.batch = 1

    def _columns(self, bundle: Bundle) -> dict[str, Shape]:
        """The shape of each column that the flow names: () of a number, (n,) of a vector."""
        sources = [source for call in self.flow.calls for source in call.sources()]
        names = {source.name for source in sources if isinstance(source, Column)}
        columns: list[dict[str, Shape]] = [
            {name: np.shape(value) for name, value in step.columns.items()}
            for schedule in bundle.schedules.values()
            for step in schedule.passes
        ]
        for name in names:
            shapes = {each.get(name) for each in columns}
            if None in shapes:
                raise BundleError(f"{MANIFEST}: loop: a pass has no column {name!r}")
            if len(shapes) > 1:
                raise BundleError(f"{MANIFEST}: loop: column {name!r} is not alike in every pass")
        return columns[0] if columns else {}

    def validate(self) -> None:
        if self.flow.has_loop and (self.latent is None or not self.has_tables):
            raise BundleError(f"{MANIFEST}: task {self.task.name!r}: its loop has no table")
        self.batch = self._batch()
        for call in self.flow.calls:
            part = self.parts[call.part]
            part.entry_of(self.task.name)
            for spec in part.inputs_of(self.task.name):
                self._require_input(call, spec)
            for spec in part.outputs:
                if spec.dtype != "float32":
                    raise BundleError(f"{MANIFEST}: {part.name}: its outputs must be float32")
        self._require_results()

    def _batch(self) -> int:
        """The first extent of what pass calls take, other than 1; the same of all."""
        extents = {
            spec.shape[0]
            for call in self.flow.of("pass")
            for spec in (
                *self.parts[call.part].inputs_of(self.task.name),
                *self.parts[call.part].outputs,
            )
            if spec.shape
        }
        if len(extents - {1}) > 1 or max(extents, default=1) > _LARGEST_BATCH:
            raise BundleError(
                f"{MANIFEST}: task {self.task.name!r}: calls in a pass have one batch of 1 to "
                f"{_LARGEST_BATCH}, they have {', '.join(map(str, sorted(extents)))}"
            )
        return max(extents, default=1)

    def _require_input(self, call: Call, spec: TensorSpec) -> None:
        where = f"{MANIFEST}: call {call.id!r}: input {spec.name[:80]!r}"
        value = call.inputs[spec.name]
        tokens = [source for source in value.sources if isinstance(source, Tokens)]
        dtype = "int32" if tokens else "float32"
        joined = len(tokens) not in (0, len(value.sources))
        if joined or any(source.multiply or source.divide for source in tokens):
            raise BundleError(f"{where}: tokens are int32: neither joined with others nor scaled")
        if spec.dtype != dtype:
            raise BundleError(f"{where} must be {dtype}")
        batch = spec.shape[0] if spec.shape else 0
        if batch != 1 and (call.when != "pass" or batch != self.batch):
            raise BundleError(f"{where} has another batch than 1")
        if call.when == "pass" and batch == 1 < self.batch and self._varies(value):
            raise BundleError(f"{where} differs by branch and must have batch {self.batch}")
        expected = (1, *spec.shape[1:])
        actual = self._value(value, expected, where)
        if actual != expected:
            raise BundleError(f"{where} must be [{_list(expected)}], it gets [{_list(actual)}]")
        if value.empty is not None:
            self._require_constant(value.empty, expected)

    def _varies(self, value: Value) -> bool:
        """Whether a pass call's input may differ between branches of one pass."""
        varying = {call.id for call in self.flow.of("pass")} | self.flow.prompted
        return value.empty is not None or any(
            source.only is not None or (isinstance(source, Output) and source.call in varying)
            for source in value.sources
        )

    def _value(self, value: Value, expected: Shape, where: str) -> Shape:
        shapes = [self._source(source, expected, where) for source in value.sources]
        if value.axis is None:
            return shapes[0]
        axis = value.axis
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if len(others) != 1 or any(len(shape) <= axis for shape in shapes):
            raise BundleError(f"{where}: its sources cannot be joined along axis {axis}")
        total = sum(shape[axis] for shape in shapes)
        return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])

    def _source(self, source: Source, expected: Shape, where: str) -> Shape:
        match source:
            case Latent() | Guided():
                assert self.latent is not None  # such calls are those of a loop
                return self.latent
            case Column():
                width = self.columns[source.name]
                return expected if not width else (1, *width)
            case Number():
                return expected
            case Constant():
                return self._constant(source.name).shape
            case Tokens():
                length = self.tokens[source.tokenizer]
                if not 3 <= length <= _LONGEST:
                    raise BundleError(f"{where}: a prompt has 3 to {_LONGEST} tokens")
                return (1, length)
            case Picture():
                return self._picture(source, where)
            case Tensor():
                return self.task.inputs.tensors[source.name].shape
            case Output():
                return self._output(source, where)

    def _picture(self, source: Picture, where: str) -> Shape:
        record = self.task.inputs.pictures[source.name]
        step = source.every or source.mean or 1
        if any(side % step for side in self.size):
            raise BundleError(f"{where}: {self.size} is no multiple of {step}")
        channels = 3 if record.kind == "picture" else 1
        return (1, channels, *(side // step for side in self.size))

    def _output(self, output: Output | OutputName, where: str) -> Shape:
        call = self.flow.call(output.call)
        shape = next(s.shape for s in self.parts[call.part].outputs if s.name == output.name)
        if not shape or shape[0] not in ((1, self.batch) if call.when == "pass" else (1,)):
            raise BundleError(f"{where}: {output.name[:80]!r} of {call.id!r} has another batch")
        return (1, *shape[1:])

    def _require_results(self) -> None:
        results = {
            "prediction": self.latent,
            "refined": self.latent,
            "picture": (1, 3, *self.size),
        }
        for key, expected in results.items():
            output: OutputName | None = getattr(self.flow, key)
            where = f"{MANIFEST}: task {self.task.name!r}: {key}"
            if output is not None and (actual := self._output(output, where)) != expected:
                raise BundleError(
                    f"{where} must be [{_list(expected or ())}], it is [{_list(actual)}]"
                )
        if self.flow.prediction is not None:
            call, name = self.flow.call(self.flow.prediction.call), self.flow.prediction.name
            shape = next(s.shape for s in self.parts[call.part].outputs if s.name == name)
            if shape[0] != self.batch:
                where = f"{MANIFEST}: task {self.task.name!r}: prediction"
                raise BundleError(f"{where} has batch {shape[0]}, its pass {self.batch}")
        if self.flow.start is not None:
            where = f"{MANIFEST}: task {self.task.name!r}: start"
            actual = self._source(self.flow.start, self.latent or (), where)
            if actual != self.latent:
                raise BundleError(f"{where} is [{_list(actual)}], not the latent's shape")

    def _require_constant(self, name: str, expected: Shape) -> None:
        value = self._constant(name)
        if value.shape != expected:
            raise BundleError(
                f"constants.safetensors: {name[:80]!r} must be float32 [{_list(expected)}], it is "
                f"[{_list(value.shape)}]"
            )

    def _constant(self, name: str) -> np.ndarray:
        value = self.constants.get(name)
        if value is None or value.dtype != np.float32:
            problem = "is missing" if value is None else f"is {value.dtype}, not float32"
            raise BundleError(f"constants.safetensors: {name[:80]!r} {problem}")
        return value


def _list(shape: Shape) -> str:
    return ", ".join(map(str, shape))
