"""``unet/config.json``: what format 1 allows in it, its tasks, and the stock config of a fold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from mtu_export.checkpoint.folder import read_json
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.checkpoint.validation import StrictModel, legal, refused, validate
from mtu_export.spec import CheckpointError, Conditioning, Guidance, Task, shown

FORMAT = 1
MTU_KEYS = (
    "mtu_format",
    "num_experts",
    "task_embedding_dim",
    "router_hidden_dim",
    "tasks",
    "task_norm",
)
"""Keys that ``unet/config.json`` has beside those of a stock UNet."""
RESCALE = "_rescale"
"""Key of the factor between the experts' value rows and the dense model's; see ``rescale``."""
STOCK_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": None,
    "cross_attention_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
}
"""Defaults of the stock UNet for the keys that are read here; a config may leave them out."""
CLASS_SUFFIX = "UNet2DConditionModel"
WHERE = "unet/config.json"
TRAINING_KEYS = (
    "decay",
    "gradient_checkpointing",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
"""Keys that diffusers' training (``EMAModel.save_pretrained``) leaves in a part's config.

diffusers ignores them when it loads the part, and so does everything here."""
_LARGEST, _DEEPEST = 2**24, 128
_MOST_BLOCKS = 2048


def _bounded(value: Any) -> Any:
    """Refuse integers of an absurd size, at any depth."""
    for entry in _flattened(value):
        if isinstance(entry, int) and abs(entry) > _LARGEST:
            raise refused(f"must be at most {_LARGEST:,}")
    return value


def _flattened(value: Any) -> Iterator[Any]:
    """A value, and whatever is in its lists at any depth."""
    pending = [value]
    while pending:
        entry = pending.pop()
        yield entry
        pending += entry if isinstance(entry, (list, tuple)) else ()


_Size = Annotated[int, Field(ge=1, le=_LARGEST)]
_Depth = Annotated[int, Field(ge=1, le=_DEEPEST)]
Size = Annotated[_Size, legal(f"a positive integer, at most {_LARGEST:,}")]
Depth = Annotated[_Depth, legal(f"a positive integer, at most {_DEEPEST}")]
Levels = Annotated[
    Sequence[_Size], Field(min_length=1), legal(f"a list of positive integers up to {_LARGEST:,}")
]
Sizes = Annotated[
    _Size | Sequence[_Size | Sequence[_Size]] | None,
    legal(f"a positive integer or a list of them, at most {_LARGEST:,}"),
]
Depths = Annotated[
    _Depth | Sequence[_Depth | Sequence[_Depth]] | None,
    legal(f"a positive integer or a list of them, at most {_DEEPEST}"),
]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST), legal("a number")]
Flag = bool | None
_NO_INPUT = "; others need an input that no export has"
NoInput = Annotated[None, legal("null" + _NO_INPUT)]
NotTrue = Annotated[Literal[False] | None, legal("false" + _NO_INPUT)]
NotGated = Annotated[Literal["default"] | None, legal('"default"' + _NO_INPUT)]
TextTime = Annotated[Literal["text_time"] | None, legal('null or "text_time"' + _NO_INPUT)]


class StockConfig(StrictModel):
    """The keys of a stock UNet's config that are checked; diffusers knows more of them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_bounded)]]

    in_channels: Size = STOCK_DEFAULTS["in_channels"]
    out_channels: Size = STOCK_DEFAULTS["out_channels"]
    cross_attention_dim: Size = STOCK_DEFAULTS["cross_attention_dim"]
    block_out_channels: Levels = STOCK_DEFAULTS["block_out_channels"]
    sample_size: Sizes = None
    attention_head_dim: Sizes = 8
    num_attention_heads: Sizes = None
    norm_num_groups: Sizes = 32
    layers_per_block: Depths = 2
    transformer_layers_per_block: Depths = 1
    reverse_transformer_layers_per_block: Depths = None
    center_input_sample: Flag = False
    flip_sin_to_cos: Flag = True
    mid_block_only_cross_attention: Flag = None
    resnet_skip_time_act: Flag = False
    upcast_attention: Flag = False
    use_linear_projection: Flag = False
    dropout: Number = 0.0
    freq_shift: Number = 0
    mid_block_scale_factor: Number = 1
    norm_eps: Number = 1e-5
    resnet_out_scale_factor: Number = 1.0
    addition_embed_type: TextTime = None
    addition_time_embed_dim: Size | None = None
    projection_class_embeddings_input_dim: Size | None = None
    attention_type: NotGated = "default"
    class_embed_type: NoInput = None
    class_embeddings_concat: NotTrue = False
    dual_cross_attention: NotTrue = False
    encoder_hid_dim: NoInput = None
    encoder_hid_dim_type: NoInput = None
    num_class_embeds: NoInput = None
    time_cond_proj_dim: NoInput = None

    @model_validator(mode="after")
    def _validate_together(self) -> StockConfig:
        depths = (self.layers_per_block, self.transformer_layers_per_block)
        blocks = len(self.block_out_channels) * prod(map(_largest, depths))
        if blocks > _MOST_BLOCKS:
            raise refused(
                "layers_per_block and transformer_layers_per_block are absurdly large: about "
                f"{blocks:,} blocks, at most {_MOST_BLOCKS:,} are read"
            )
        time, total = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        is_text_time = self.addition_embed_type == "text_time"
        if is_text_time and not (time and total and total > 6 * time):
            raise refused(
                "projection_class_embeddings_input_dim must be the width of the pooled text and 6 "
                f"times addition_time_embed_dim, got {shown(total)} and {shown(time)}"
            )
        return self


class ConditioningEntry(StrictModel):
    """An entry of a task's ``conditioning``."""

    kind: str
    channels: int
    scaled: bool = True


class GuidanceEntry(StrictModel):
    """A task's ``guidance``."""

    kind: str
    text: float | None = None
    image: float | None = None


class TaskEntry(StrictModel):
    """A task object, in ``unet/config.json`` or in a file of its own."""

    name: str
    conditioning: Sequence[ConditioningEntry]
    guidance: GuidanceEntry
    steps: int
    prompt: str | None = None

    def task(self, index: int) -> Task:
        """The task with this row of the embedding; raises ``CheckpointError``."""
        entries = (entry.model_dump() for entry in self.conditioning)
        return Task(
            name=self.name,
            index=index,
            conditioning=tuple(Conditioning(**entry) for entry in entries),
            guidance=Guidance(**self.guidance.model_dump()),
            steps=self.steps,
            prompt=self.prompt,
        )


class Config(StockConfig):
    """``unet/config.json`` of format 1; :func:`check_config` refuses the keys that no UNet has."""

    mtu_format: Literal[1]
    num_experts: Depth
    task_embedding_dim: Size
    router_hidden_dim: Size
    tasks: Annotated[Sequence[TaskEntry], Field(min_length=1)]
    task_norm: Literal["replace", "stacked"] = "replace"
    rescale: Annotated[int, legal("1 or num_experts")] | None = Field(None, alias=RESCALE)

    @model_validator(mode="after")
    def _validate_experts(self) -> Config:
        names = Counter(task.name for task in self.tasks)
        for name, count in names.items():
            if count > 1:
                raise refused(f"task {shown(name)} appears twice")
        if self.task_norm == "stacked" and {*names} & {"weight", "bias"}:
            raise refused(
                "with stacked norms no task can be named 'weight' or 'bias': these are the names "
                "of the shared norm's tensors"
            )
        if self.rescale not in (None, 1, self.num_experts):
            raise refused(
                f"{RESCALE} must be 1 or num_experts ({self.num_experts}), got {self.rescale}"
            )
        return self


def read_config(folder: Path) -> dict[str, Any]:
    """``unet/config.json`` with the stock defaults, validated, and the VAE's scale with it."""
    if not (folder / "unet").is_dir():
        if (folder / "config.json").is_file():
            family(read_json(folder / "config.json"))  # says what to do with a dense UNet's folder
        raise CheckpointError(f"{folder} has no unet/ folder: not a checkpoint")
    config = {**STOCK_DEFAULTS, **without_training_keys(read_json(folder / "unet" / "config.json"))}
    family(config)
    _validated(config)
    _ = PipelineLayout.read(folder, config).scaling_factor  # refuses one out of range
    return config


def without_training_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without :data:`TRAINING_KEYS`."""
    return {key: value for key, value in config.items() if key not in TRAINING_KEYS}


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a stock UNet's values of a wrong type or absurd size, before anything is built."""
    validate(StockConfig, dict(config), CheckpointError, WHERE)


def _largest(value: Any) -> int:
    """The largest integer in a value and its lists, at least 1."""
    return max((entry for entry in _flattened(value) if isinstance(entry, int)), default=1)


def _validated(config: Mapping[str, Any]) -> Config:
    version = config.get("mtu_format")
    if type(version) is int and version > FORMAT:
        raise CheckpointError(
            f"{WHERE}: mtu_format {shown(version)} needs a newer mtu-export "
            f"(this one reads format {FORMAT})"
        )
    return validate(Config, dict(config), CheckpointError, WHERE)


def family(config: Mapping[str, Any]) -> str:
    """Name of the checkpoint's family: ``MTUUNet2DConditionModel`` -> ``"mtu"``."""
    name = config.get("_class_name")
    if name == CLASS_SUFFIX:
        raise CheckpointError(
            "the UNet is dense (UNet2DConditionModel); make a checkpoint that starts equal to it "
            "with: mtu-export upcycle SOURCE OUT --task ... --rescale"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9]*" + CLASS_SUFFIX, name):
        raise CheckpointError(
            f"{WHERE}: _class_name {shown(name)} is not that of an MTU checkpoint"
        )
    return name.removesuffix(CLASS_SUFFIX).lower()


def rescale(config: Mapping[str, Any]) -> int | None:
    """The factor that ``upcycle`` multiplied value rows by: N with ``--rescale``, else 1.

    None where the checkpoint does not say, which those from elsewhere, random ones and old ones do
    not.
    """
    return config.get(RESCALE) or (1 if config["num_experts"] == 1 else None)


def task_from_json(document: object, index: int, where: str) -> Task:
    """The task of a task object; raises ``CheckpointError``, which begins with ``where``."""
    return validate(TaskEntry, document, CheckpointError, where).task(index)


def tasks(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a config; raises ``CheckpointError``."""
    return tuple(entry.task(index) for index, entry in enumerate(_validated(config).tasks))


def check_config(config: Mapping[str, Any], stock_keys: Iterable[str]) -> None:
    """Refuse a newer format, unknown keys and values that format 1 does not allow."""
    tasks(config)
    legal_keys = {*MTU_KEYS, *stock_keys}
    for key in config:
        if not key.startswith("_") and key not in legal_keys:
            raise CheckpointError(f"{WHERE}: unknown key {key[:80]!r}")


def stock_config(config: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """The config of the stock ``UNet2DConditionModel`` that a folded task is."""
    kept = {k: v for k, v in config.items() if k not in MTU_KEYS and not k.startswith("_")}
    return {**kept, "in_channels": in_channels, "_class_name": CLASS_SUFFIX}
