"""``manifest.json`` as pydantic models: its keys, their types and ranges.

``make schema`` writes ``runtime/manifest.schema.json`` from them. What JSON Schema cannot express,
such as references between keys, is in ``bundle/rules.py``. Unknown keys belong to a newer minor
version and are left out, except in a flow, where each changes what is computed (``spec/flow.py``).
Integers may be written ``24`` or ``24.0``, as JSON does not tell them apart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mtu_export.spec import (
    MOST_PASSES,
    TIMESTEP,
    BundleError,
    Guidance,
    Pass,
    Schedule,
    TensorSpec,
    Verdict,
)
from mtu_export.spec.flow import Flow, Inputs, Kind, Name
from mtu_export.spec.records import (
    MOST_ENTRIES,
    WHOLE,
    Channels,
    Coefficient,
    Coefficients,
    Count,
    Decibels,
    Extent,
    Features,
    Hash,
    Number,
    Numbers,
    Path,
    Positive,
    Record,
    Scale,
    Side,
    Steps,
    Strength,
    TaskName,
    Version,
)


class LoraRecord(Record):
    """A LoRA, with counts by part of layers folded in and of those for parts not exported.

    ``forms`` counts the former by method, ``blocks`` are scales of blocks in place of ``scale``.
    """

    name: str
    sha256: str
    scale: Number
    layers: dict[str, Count]
    unused: dict[str, Count]
    forms: dict[str, Count] | None = None
    adapter: str | None = None
    blocks: dict[str, Number] | None = None


class EmbeddingRecord(Record):
    """A textual inversion, and the number of tokens that ``token`` stands for."""

    name: str
    sha256: str
    token: str
    vectors: Count


class Source(Record):
    """The checkpoint, for people and tools; ``fingerprint`` identifies the export's whole input
    and ``notes`` say what was left out.

    ``name`` is that of its folder, or owner/name on the hub with the commit as ``revision``.
    """

    name: str
    revision: str | None = None
    family: str
    sha256: str
    config: dict[str, Any]
    loras: Annotated[tuple[LoraRecord, ...], Field(max_length=MOST_ENTRIES)] = ()
    embeddings: Annotated[tuple[EmbeddingRecord, ...], Field(max_length=MOST_ENTRIES)] = ()
    clip_skip: Annotated[int, Field(ge=0, le=128), WHOLE] = 0
    fingerprint: str | None = None
    notes: Annotated[tuple[str, ...], Field(max_length=16)] = ()


class Weights(Record):
    """How weights are stored; ``granularity`` is that of integer codes."""

    bits: Annotated[int, Field(ge=1, le=64), WHOLE]
    granularity: str | None


class KeptLayer(Record):
    """A layer that stays floating point, and why."""

    layer: str
    why: str


class SchemeRecord(Record):
    """A scheme as it was applied to one part."""

    name: str
    weights: Weights
    activations: str
    calibration: Any = None
    kept_float: Annotated[tuple[KeptLayer, ...], Field(max_length=10_000)]


class Image(Record):
    """Size of every picture in pixels."""

    height: Side
    width: Side


class Latent(Record):
    """Channels of a latent, and its pixels per cell."""

    channels: Channels
    factor: Side


# --------------------------------------------------------------------------------------- tasks


class NoGuidance(Record):
    """One pass per step."""

    kind: Literal["none"]


class TextGuidance(Record):
    """Two passes per step, with and without the prompt."""

    kind: Literal["text"]
    text: Scale


class TextImageGuidance(Record):
    """Three passes per step; ``image`` is the scale of the image alone."""

    kind: Literal["text_image"]
    text: Scale
    image: Scale


GuidanceRecord = Annotated[
    NoGuidance | TextGuidance | TextImageGuidance, Field(discriminator="kind")
]


class TaskRecord(Record):
    """A task: its guidance, what it takes from its user, and its flow.

    ``strength`` is the default of a task whose loop starts from a picture; ``prompt`` a fixed one.
    """

    name: TaskName
    guidance: GuidanceRecord
    steps: Steps
    strength: Strength | None = None
    prompt: str | None = None
    inputs: Inputs
    flow: Flow

    @property
    def scales(self) -> Guidance:
        """The guidance as the loop takes it."""
        return Guidance(**self.guidance.model_dump())

    @property
    def takes_prompt(self) -> bool:
        """Whether the user gives a prompt."""
        return bool(self.flow.prompted)

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether the user may give a negative prompt."""
        return self.takes_prompt and self.guidance.kind != "none"


# --------------------------------------------------------------------------------------- parts


class TensorRecord(Record):
    """An input or output of a part."""

    name: str
    shape: Annotated[tuple[Extent, ...], Field(max_length=8)]
    dtype: Literal["float32", "int32"]

    def spec(self) -> TensorSpec:
        """The :class:`TensorSpec` of this record."""
        return TensorSpec(name=self.name, shape=self.shape, dtype=self.dtype)


Tensors = Annotated[tuple[TensorRecord, ...], Field(max_length=64)]


class CostRecord(Record):
    """Size and work of one pass of a part; bytes of weights by who uses them."""

    parameters: Count
    flops_conv_linear: Count
    flops_total: Count
    weight_bytes: Count
    shared_weight_bytes: Count = 0
    task_weight_bytes: dict[str, Count] = Field(default_factory=dict, max_length=64)


class FileRecord(Record):
    """A file or folder of the bundle with its size and hash."""

    path: Path
    bytes: Count
    sha256: Hash


class PartRecord(Record):
    """A part: its artefact, its entries by task, its inputs and outputs.

    ``data`` are files of ``files`` that lie beside the artefact and hold weights of it. ``scheme``
    is the manifest's where a part has none of its own; ``task_inputs`` are the inputs of tasks that
    have other ones than ``inputs``; ``witness`` are numbers by task that change with the weights.
    """

    name: Name
    kind: Kind
    path: Path
    bytes: Count
    sha256: Hash
    data: Annotated[tuple[Path, ...], Field(max_length=16)] = ()
    entries: Annotated[
        dict[str, Annotated[str, Field(min_length=1, max_length=255)]],
        Field(min_length=1, max_length=64),
    ]
    inputs: Tensors
    outputs: Tensors
    task_inputs: dict[str, Tensors] = Field(default_factory=dict, max_length=64)
    scheme: SchemeRecord | None = None
    cost: CostRecord
    notes: dict[str, Any] = Field(default_factory=dict)
    witness: dict[str, Numbers] = Field(default_factory=dict, max_length=64)


class TokenizerRecord(Record):
    """A tokenizer's folder, its special ids and the length of its output."""

    path: Path
    bos: Count
    eos: Count
    pad: Count
    length: Count


# ---------------------------------------------------------------------------------------- loop


class PassRecord(Record):
    """One pass; ``columns`` feed inputs of parts, ``noise`` multiplies fresh noise."""

    columns: Annotated[dict[Name, Coefficient | Features], Field(max_length=16)]
    input_scale: Positive
    x: Coefficients
    m: Coefficients
    noise: Coefficient


class StartRecord(Record):
    """What the loop begins from: factors of the first noise and of the task's start."""

    noise: Positive
    picture: Coefficient


class ScheduleRecord(Record):
    """The passes of one step count and, where the loop starts from a picture, strength."""

    steps: Steps
    strength: Strength | None = None
    start: StartRecord
    passes: Annotated[tuple[PassRecord, ...], Field(min_length=1, max_length=MOST_PASSES)]

    def schedule(self) -> Schedule:
        """The :class:`Schedule`; raises ``BundleError`` where a pass looks before the start."""
        if any(TIMESTEP not in p.columns for p in self.passes):
            raise BundleError(f"a pass has no column {TIMESTEP!r}")
        passes = []
        for record in self.passes:
            features = dict(record.columns)
            timestep = features.pop(TIMESTEP)
            if not isinstance(timestep, float):
                raise BundleError(f"column {TIMESTEP!r} is no number")
            passes.append(
                Pass(
                    timestep=timestep,
                    features=features,
                    input_scale=record.input_scale,
                    x=record.x,
                    m=record.m,
                    noise=record.noise,
                )
            )
        return Schedule(
            start_noise=self.start.noise,
            start_picture=self.start.picture,
            strength=self.strength,
            passes=tuple(passes),
        )

    @classmethod
    def of(cls, steps: int, schedule: Schedule) -> ScheduleRecord:
        """The record of a schedule; inverse of :meth:`schedule`."""
        passes = (
            PassRecord(
                columns=dict(step.columns),
                input_scale=step.input_scale,
                x=step.x,
                m=step.m,
                noise=step.noise,
            )
            for step in schedule.passes
        )
        return cls(
            steps=steps,
            **({} if schedule.strength is None else {"strength": schedule.strength}),
            start=StartRecord(noise=schedule.start_noise, picture=schedule.start_picture),
            passes=tuple(passes),
        )


class Golden(Record):
    """The request of the goldens of every flow; ``steps`` where one has a loop."""

    prompt: str
    negative_prompt: str | None = None
    steps: Steps | None = None
    strength: Strength | None = None


class Loop(Record):
    """The scheduler as tables; ``skipped`` says why a step count has none."""

    scheduler: str
    prediction_type: str
    schedules: Annotated[tuple[ScheduleRecord, ...], Field(max_length=1000)]
    skipped: dict[str, str] = Field(default_factory=dict, max_length=1000)


class VerdictRecord(Record):
    """One verdict of the export; ``psnr_db``, ``runner`` and ``passed`` are None where not run."""

    part: str
    task: str
    stage: str
    psnr_db: Number | None
    max_abs: Number | None
    floor_db: Decibels
    runner: str | None
    passed: bool | None
    reason: str | None

    def verdict(self) -> Verdict:
        """The :class:`Verdict` of this record."""
        return Verdict(**self.model_dump())


class Manifest(Record):
    """The whole of ``manifest.json``."""

    schema_version: Version
    name: str
    created: str
    versions: dict[str, str]
    source: Source
    target: str
    options: dict[str, Any]
    scheme: SchemeRecord
    image: Image
    tasks: Annotated[tuple[TaskRecord, ...], Field(min_length=1, max_length=MOST_ENTRIES)]
    parts: Annotated[tuple[PartRecord, ...], Field(min_length=1, max_length=32)]
    tokenizers: Annotated[tuple[TokenizerRecord, ...], Field(max_length=16)]
    latent: Latent | None = None
    loop: Loop | None = None
    golden: Golden | None = None
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MOST_ENTRIES)] = ()
    proof: Annotated[tuple[VerdictRecord, ...], Field(max_length=1024)]
