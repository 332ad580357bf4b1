"""``unet/config.json``: what format 1 allows in it, its tasks, and the stock config of a fold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mtu_export.checkpoint import Folder
from mtu_export.checkpoint.folder import read_json
from mtu_export.checkpoint.validation import StrictModel, legal, refused, validate
from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.models.pipeline.unet_config import (
    CLASS_SUFFIX,
    STOCK_DEFAULTS,
    WHERE,
    Depth,
    NoInput,
    Size,
    StockConfig,
    without_training_keys,
)
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
    time_cond_proj_dim: NoInput = None  # an MTU UNet is not distilled
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


def read_config(folder: Folder) -> dict[str, Any]:
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
