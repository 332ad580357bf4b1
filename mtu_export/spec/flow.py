"""The flow of a task as data: which parts run, when, and where each of their inputs comes from.

A flow is a list of *calls* of parts. Each input of a call has a *value*: one or more *sources*,
concatenated. Calls are made once an image, at each pass of the loop, on the guided prediction, or
on the last latent (``runtime/README.md``, "The flow").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mtu_export.spec.errors import BundleError
from mtu_export.spec.records import WHOLE, Factor, Record

NAME = "[a-z][a-z0-9_]{0,63}"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
"""Of a part, a call, a picture, a tensor or a number of the request."""
TensorName = Annotated[str, Field(min_length=1, max_length=255)]
"""Of an input or output in a file, and of a constant."""
Path = Annotated[str, Field(min_length=1, max_length=255)]
Cells = Annotated[int, Field(ge=1, le=8192), WHOLE]
MOST_SOURCES = 16
"""Of a value."""
Kind = Literal["denoiser", "text_encoder", "image_encoder", "image_decoder", "network"]
"""What a part does; readers treat none of them in a way of its own."""
When = Literal["once", "pass", "guided", "end"]
STAGES: tuple[When, ...] = ("once", "pass", "guided", "end")
"""When calls are made, in this order: before the loop, in each pass, on its sum, after the loop."""
_VISIBLE: Mapping[When, tuple[When, ...]] = {
    "once": ("once",),
    "pass": ("once", "pass"),
    "guided": ("once", "guided"),
    "end": ("once", "end"),
}
"""Whose outputs a call may take: guided calls come after the sum, which joins the branches."""


class _Closed(Record):
    """An object whose every key changes what is computed: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class _Source(_Closed):
    """Where an array [1, ...] comes from; ``multiply`` and ``divide`` are float32 operations.

    ``only``: zeros in the branches without the prompt or without the image.
    """

    multiply: Factor | None = None
    divide: Factor | None = None
    only: Literal["prompt", "image"] | None = None


class Latent(_Source):
    """x times the pass's ``input_scale``; in an end call the last x."""

    kind: Literal["latent"]


class Column(_Source):
    """A number or vector of the pass, by name, such as ``timestep``; it fills the input."""

    kind: Literal["column"]
    name: Name


class Constant(_Source):
    """A tensor of ``constants.safetensors``."""

    kind: Literal["constant"]
    name: TensorName


class Tokens(_Source):
    """Ids [1, length] of the prompt, by the tokenizer in this folder."""

    kind: Literal["tokens"]
    tokenizer: Path


class Picture(_Source):
    """A fitted picture or mask of the request.

    ``outside`` names a mask: 0 where it is 1. ``every`` takes each n-th pixel of both axes from the
    first on, ``mean`` the mean of each cell of n x n pixels.
    """

    kind: Literal["picture"]
    name: Name
    outside: Name | None = None
    every: Cells | None = None
    mean: Cells | None = None


class Tensor(_Source):
    """A tensor of the request."""

    kind: Literal["tensor"]
    name: Name


class Number(_Source):
    """A number of the request; it fills the input."""

    kind: Literal["number"]
    name: Name


class Output(_Source):
    """An output of an earlier call."""

    kind: Literal["output"]
    call: Name
    name: TensorName


class Guided(_Source):
    """The guided sum of the pass."""

    kind: Literal["guided"]


Source = Annotated[
    Latent | Column | Constant | Tokens | Picture | Tensor | Number | Output | Guided,
    Field(discriminator="kind"),
]


class Value(_Closed):
    """What an input gets: sources, concatenated along ``axis`` where there are several.

    ``empty`` names the constant that stands for all of it in the branches without the prompt, where
    the request has no negative prompt.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=MOST_SOURCES)]
    axis: Annotated[int, Field(ge=1, le=7), WHOLE] | None = None
    empty: TensorName | None = None


class OutputName(_Closed):
    """An output of a call."""

    call: Name
    name: TensorName


class Call(_Closed):
    """One run of a part."""

    id: Name
    part: Name
    when: When
    inputs: Annotated[dict[TensorName, Value], Field(min_length=1, max_length=64)]

    def sources(self) -> Iterator[Source]:
        """The sources of all inputs."""
        for value in self.inputs.values():
            yield from value.sources


class Flow(_Closed):
    """The calls of a task in order; without a loop there is no ``prediction``.

    ``start`` is what the loop begins from beside noise, ``prediction`` what guidance sums,
    ``refined`` takes the place of the sum, ``picture`` is the result [1, 3, H, W] in −1..1.
    """

    calls: Annotated[tuple[Call, ...], Field(min_length=1, max_length=64)]
    start: Source | None = None
    prediction: OutputName | None = None
    refined: OutputName | None = None
    picture: OutputName

    @property
    def has_loop(self) -> bool:
        """Whether there are passes, and so a table of their coefficients."""
        return self.prediction is not None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the flow runs, in order."""
        return tuple(dict.fromkeys(call.part for call in self.calls))

    def renamed(self, names: Mapping[str, Mapping[str, str]]) -> Flow:
        """The flow with other names of inputs and outputs, by part: old name to new."""
        parts = {call.id: names.get(call.part, {}) for call in self.calls}

        def output(source: Source) -> Source:
            if not isinstance(source, Output):
                return source
            name = parts[source.call].get(source.name, source.name)
            return source.model_copy(update={"name": name})

        def result(name: OutputName | None) -> OutputName | None:
            if name is None:
                return None
            return OutputName(call=name.call, name=parts[name.call].get(name.name, name.name))

        calls = []
        for call in self.calls:
            values = {
                parts[call.id].get(name, name): value.model_copy(
                    update={"sources": tuple(map(output, value.sources))}
                )
                for name, value in call.inputs.items()
            }
            calls.append(call.model_copy(update={"inputs": values}))
        update: dict[str, object] = {"calls": tuple(calls), "picture": result(self.picture)}
        if self.start is not None:
            update["start"] = output(self.start)
        for key in ("prediction", "refined"):
            if (named := result(getattr(self, key))) is not None:
                update[key] = named
        return self.model_copy(update=update)

    def of(self, when: When) -> tuple[Call, ...]:
        """The calls of one stage."""
        return tuple(call for call in self.calls if call.when == when)

    def call(self, name: str) -> Call:
        """The call of this id."""
        return next(call for call in self.calls if call.id == name)

    @property
    def prompted(self) -> frozenset[str]:
        """Ids of the once calls whose outputs depend on the prompt."""
        prompted: set[str] = set()
        for call in self.of("once"):
            for source in call.sources():
                if isinstance(source, Tokens) or (
                    isinstance(source, Output) and source.call in prompted
                ):
                    prompted.add(call.id)
        return frozenset(prompted)


class PictureRequest(_Closed):
    """A picture that the user gives: how it is fitted, and what its values are.

    It covers the bundle's size. ``grey`` is one channel; a mask is 0 and 1, with the threshold at
    one half, and has neither filter nor range.
    """

    kind: Literal["picture", "grey", "mask"]
    filter: Literal["lanczos", "nearest"] = "lanczos"
    range: Literal["-1..1", "0..1", "0..255"] = "-1..1"


class TensorRequest(_Closed):
    """A tensor that the user gives."""

    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE], ...],
        Field(min_length=1, max_length=8),
    ]


class NumberRequest(_Closed):
    """A number that the user may set."""

    default: Annotated[float, Field(ge=-1e6, le=1e6)]
    minimum: Annotated[float, Field(ge=-1e6, le=1e6)]
    maximum: Annotated[float, Field(ge=-1e6, le=1e6)]


class Inputs(_Closed):
    """What a task takes from its user beside the prompt, by name."""

    pictures: dict[Name, PictureRequest] = Field(default_factory=dict, max_length=16)
    tensors: dict[Name, TensorRequest] = Field(default_factory=dict, max_length=16)
    numbers: dict[Name, NumberRequest] = Field(default_factory=dict, max_length=16)


def require_order(flow: Flow, where: str) -> None:
    """Refuse calls out of order, a source that a stage does not have, and dangling outputs.

    ``where`` begins the message. Raises ``BundleError``.
    """
    seen: dict[str, Call] = {}
    stage = 0
    for index, call in enumerate(flow.calls):
        place = f"{where}.calls[{index}]"
        if call.id in seen:
            raise BundleError(f"{place}: call {call.id!r} is there twice")
        if STAGES.index(call.when) < stage:
            raise BundleError(f"{place}: a call {call.when!r} follows one {STAGES[stage]!r}")
        stage = STAGES.index(call.when)
        for name, value in call.inputs.items():
            _require_value(value, call.when, seen, flow, f"{place}.inputs.{name[:80]}")
        seen[call.id] = call
    _require_results(flow, seen, where)


def _require_value(
    value: Value, when: When, seen: Mapping[str, Call], flow: Flow, where: str
) -> None:
    if (len(value.sources) > 1) != (value.axis is not None):
        raise BundleError(f"{where}: axis belongs to several sources, and to them alone")
    if value.empty is not None and when != "pass":
        raise BundleError(f"{where}: empty is for calls in a pass")
    for source in value.sources:
        _require_source(source, when, seen, where)


_LEGAL: Mapping[str, tuple[When, ...]] = {
    "latent": ("pass", "guided", "end"),
    "column": ("pass", "guided"),
    "tokens": ("once",),
    "guided": ("guided",),
}
"""The stages that have a kind of source, where not all have it."""


def _require_source(source: Source, when: When, seen: Mapping[str, Call], where: str) -> None:
    if when not in _LEGAL.get(source.kind, STAGES):
        raise BundleError(f"{where}: a call {when!r} has no {source.kind!r}")
    if source.only is not None and when != "pass":
        raise BundleError(f"{where}: only is for calls in a pass")
    if source.multiply is not None and source.divide is not None:
        raise BundleError(f"{where}: multiply and divide exclude each other")
    if isinstance(source, Picture) and source.every is not None and source.mean is not None:
        raise BundleError(f"{where}: every and mean exclude each other")
    if isinstance(source, Output):
        call = seen.get(source.call)
        if call is None or call.when not in _VISIBLE[when]:
            raise BundleError(
                f"{where}: {source.call!r} is no earlier call whose output a call {when!r} can take"
            )


def _require_results(flow: Flow, calls: Mapping[str, Call], where: str) -> None:
    """Refuse results of the wrong stage, and a loop of which only some is there."""
    stages: dict[str, When] = {"prediction": "pass", "refined": "guided"}
    stages["picture"] = "end" if flow.has_loop else "once"
    for key, when in stages.items():
        result: OutputName | None = getattr(flow, key)
        if result is not None and (result.call not in calls or calls[result.call].when != when):
            raise BundleError(f"{where}.{key}: {result.call!r} is no call {when!r}")
    if not flow.has_loop and (
        flow.start is not None or flow.refined is not None or len(flow.of("once")) < len(calls)
    ):
        raise BundleError(f"{where}: without prediction there is no loop, and all calls are 'once'")
    if (flow.refined is None) != (not flow.of("guided")):
        raise BundleError(f"{where}: refined and calls 'guided' come together")
    if flow.start is not None:
        if isinstance(flow.start, Tokens | Number):
            raise BundleError(f"{where}.start: {flow.start.kind!r} is no latent")
        _require_source(flow.start, "once", calls, f"{where}.start")
        if isinstance(flow.start, Output) and calls[flow.start.call].when != "once":
            raise BundleError(f"{where}.start: {flow.start.call!r} is no call 'once'")
