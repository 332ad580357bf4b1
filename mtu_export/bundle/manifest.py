"""``manifest.json`` as pydantic models: its keys, their types and ranges.

``make schema`` writes ``runtime/manifest.schema.json`` from them. What JSON Schema cannot express,
such as references between keys, is in ``bundle/rules.py``. Unknown keys belong to a newer minor
version and are left out. Integers may be written
``24`` or ``24.0``, as JSON does not tell them apart.

Schema 1.1 adds to 1.0: ``text``, ``files``, ``parts[].scheme`` and ``.notes``, ``loop.golden``.
Schema 1.2 adds ``parts[].task_inputs`` and ``parts[].cost.task_weight_bytes``, and goldens of an
entry that several tasks run are under the first of them. Schema 1.3 adds limits to the number of
items in every list and object, and to every number.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from mtu_export.bundle.kinds import (
    MOST_ENTRIES,
    WHOLE,
    Channels,
    Coefficient,
    Coefficients,
    Count,
    Decibels,
    Extent,
    Hash,
    Number,
    Numbers,
    Path,
    Positive,
    Record,
    Scale,
    Side,
    Steps,
    TaskName,
    Version,
)
from mtu_export.spec import (
    MOST_PASSES,
    Component,
    Conditioning,
    Guidance,
    Pass,
    Schedule,
    Task,
    TensorSpec,
    Verdict,
)


class LoraRecord(Record):
    """A LoRA, with counts by component of layers folded in and of those for parts not exported."""

    name: str
    sha256: str
    scale: Number
    layers: dict[str, Count]
    unused: dict[str, Count]


class Source(Record):
    """The checkpoint, for people and tools; ``fingerprint`` identifies the export's whole input.

    ``name`` is that of its folder, or owner/name on the hub with the commit as ``revision``.
    ``unet_config`` is ``model_config`` in JSON, a name that pydantic reserves.
    """

    name: str
    revision: str | None = None
    family: str
    sha256: str
    unet_config: dict[str, Any] = Field(
        validation_alias="model_config", serialization_alias="model_config"
    )
    loras: Annotated[tuple[LoraRecord, ...], Field(max_length=MOST_ENTRIES)] = ()
    fingerprint: str | None = None


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
    """Size of every picture in pixels, and how an input is fitted to it."""

    height: Side
    width: Side
    range: Annotated[
        tuple[Annotated[int, Field(ge=-1, le=1), WHOLE], ...], Field(min_length=2, max_length=2)
    ] = (-1, 1)
    fit: Literal["cover"] = "cover"
    filter: Literal["lanczos"] = "lanczos"


class Latent(Record):
    """Shape of a latent; ``scaling_factor`` multiplies it after the VAE encoder."""

    channels: Channels
    factor: Side
    scaling_factor: Annotated[float, Field(ge=1e-6, le=1e6)]


class Mask(Record):
    """How a mask is binarised and applied to the image; each key has a single legal value."""

    threshold: Annotated[float, Field(ge=0.5, le=0.5)]
    resize: Literal["nearest"]
    masked_image: Literal["image * (mask < 0.5)"]


# --------------------------------------------------------------------------------------- tasks


class ImageLatent(Record):
    """The VAE latent of the image, scaled unless ``scaled`` is false."""

    kind: Literal["image_latent"]
    channels: Channels
    scaled: bool = True


class MaskedImageLatent(Record):
    """The VAE latent of the image outside the mask."""

    kind: Literal["masked_image_latent"]
    channels: Channels


class MaskChannel(Record):
    """The mask at latent size."""

    kind: Literal["mask"]
    channels: Annotated[int, Field(ge=1, le=1), WHOLE]


class ImagePixels(Record):
    """The image at latent size."""

    kind: Literal["image"]
    channels: Annotated[int, Field(ge=3, le=3), WHOLE]


ConditioningRecord = Annotated[
    ImageLatent | MaskedImageLatent | MaskChannel | ImagePixels, Field(discriminator="kind")
]


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
    """A task, and the components that its loop needs, in order."""

    name: TaskName
    conditioning: Annotated[tuple[ConditioningRecord, ...], Field(max_length=MOST_ENTRIES)]
    guidance: GuidanceRecord
    steps: Steps
    prompt: str | None = None
    parts: Annotated[tuple[Component, ...], Field(max_length=16)]
    entry: str

    def task(self, index: int) -> Task:
        """The :class:`Task` at ``index`` of the manifest."""
        entries = (entry.model_dump() for entry in self.conditioning)
        return Task(
            name=self.name,
            index=index,
            conditioning=tuple(Conditioning(**entry) for entry in entries),
            guidance=Guidance(**self.guidance.model_dump()),
            steps=self.steps,
            prompt=self.prompt,
        )


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
    """Size and work of one pass of a part; bytes of all, of shared and of each task's weights."""

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
    """A component: its artefact, its entries by task, its inputs and outputs.

    ``scheme`` is the manifest's where it is None; ``task_inputs`` are the inputs of tasks whose
    shapes differ from ``inputs``; ``witness`` are numbers by task that change with the weights (see
    ``bundle/witness.py``).
    """

    component: Component
    path: Path
    bytes: Count
    sha256: Hash
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


class TextOutput(Record):
    """An output of a text encoder."""

    component: Component
    output: str


class Text(Record):
    """Outputs concatenated to each text input of the UNet, and each encoder's tokenizer folder."""

    inputs: Annotated[
        dict[str, Annotated[tuple[TextOutput, ...], Field(min_length=1, max_length=16)]],
        Field(max_length=16),
    ]
    tokenizers: Annotated[dict[str, Path], Field(max_length=16)]


class PassRecord(Record):
    """One pass of a schedule."""

    timestep: Coefficient
    input_scale: Positive
    x: Coefficients
    m: Coefficients


class ScheduleRecord(Record):
    """The passes of one step count."""

    init_noise_sigma: Positive
    passes: Annotated[tuple[PassRecord, ...], Field(min_length=1, max_length=MOST_PASSES)]

    def schedule(self) -> Schedule:
        """The :class:`Schedule`; raises ``BundleError`` where a pass looks before the start."""
        passes = tuple(
            Pass(timestep=p.timestep, input_scale=p.input_scale, x=p.x, m=p.m) for p in self.passes
        )
        return Schedule(start_noise=self.init_noise_sigma, passes=passes)

    @classmethod
    def of(cls, schedule: Schedule) -> ScheduleRecord:
        """The record of a schedule; inverse of :meth:`schedule`."""
        passes = tuple(PassRecord(**asdict(each)) for each in schedule.passes)
        return cls(init_noise_sigma=schedule.start_noise, passes=passes)


class Golden(Record):
    """The request that the loop's goldens were made from."""

    prompt: str
    steps: Steps


class Loop(Record):
    """The scheduler as tables by step count; ``skipped``: counts without a table, and why."""

    scheduler: str
    prediction_type: str
    schedules: Annotated[
        dict[Annotated[str, Field(pattern="^[1-9][0-9]{0,4}$")], ScheduleRecord],
        Field(max_length=1000),
    ]
    golden: Golden | None = None
    skipped: dict[str, str] = Field(default_factory=dict, max_length=1000)


class VerdictRecord(Record):
    """A :class:`Verdict` of the export; the key of its stage is ``rung`` in JSON."""

    component: str
    task: str
    stage: str = Field(validation_alias="rung", serialization_alias="rung")
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
    parts: Annotated[tuple[PartRecord, ...], Field(min_length=1, max_length=16)]
    tokenizers: Annotated[tuple[TokenizerRecord, ...], Field(max_length=16)]
    text: Text | None = None
    latent: Latent
    mask: Mask
    loop: Loop | None = None
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MOST_ENTRIES)] = ()
    proof: Annotated[tuple[VerdictRecord, ...], Field(max_length=1024)]
