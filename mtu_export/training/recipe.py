"""The config of a training run: every key checked, unknown ones refused."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mtu_export.spec import PlanError, shown

_Strings = TypeVar("_Strings", bound=Sequence[str])


def _distinct(values: _Strings) -> _Strings:
    if len(set(values)) != len(values):
        raise ValueError("a name appears twice")
    return values


# What a key may be: a type with its bounds, and the words of the error.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_MOST, _MOST_SAMPLES, _MOST_SEED = 10**9, 10**6, 2**63 - 1
_COUNT_FROM_0 = f"an integer from 0 to {_MOST}"
Text = Annotated[str, Field(min_length=1, description="a string")]
Count = Annotated[int, Field(ge=1, le=_MOST, description=f"an integer from 1 to {_MOST}")]
CountFrom0 = Annotated[int, Field(ge=0, le=_MOST, description=_COUNT_FROM_0)]
BatchSize = Annotated[
    int, Field(ge=1, le=_MOST_SAMPLES, description=f"an integer from 1 to {_MOST_SAMPLES}")
]
Seed = Annotated[int, Field(ge=0, le=_MOST_SEED, description=f"an integer from 0 to {_MOST_SEED}")]
NotNegative = Annotated[float, Field(ge=0, le=_MOST, description=f"a number from 0 to {_MOST:g}")]
Positive = Annotated[
    float, Field(gt=0, le=_MOST, description=f"a number above 0, at most {_MOST:g}")
]
BelowOne = Annotated[float, Field(ge=0, lt=1, description="a number from 0, below 1")]
Third = Annotated[float, Field(ge=0, le=1 / 3, description=f"a number from 0 to {1 / 3:g}")]
Names = Annotated[
    tuple[str, ...],
    AfterValidator(_distinct),
    Field(description="a list of names, each once"),
]
Logs = Annotated[
    tuple[Literal["csv", "tensorboard"], ...],
    AfterValidator(_distinct),
    Field(description="a list of 'csv' and 'tensorboard'"),
]
Dtype = Literal["fp32", "fp16"]
_LEGAL_VALUES: Mapping[Any, str] = {bool: "true or false", Path: "a path"}
_FREE = (
    "name",
    "output",
    "output_dtype",
    "state",
    "latents",
    "checkpointing_steps",
    "log_with",
    "log_every",
)
"""Keys that change no number of a run: a state may be taken up with others."""


@dataclass(frozen=True, kw_only=True)
class Upcycling:
    """How a dense UNet becomes experts: the options of ``mtu-export upcycle``."""

    experts: Count = 4
    rescale: bool = False
    task_norm: Literal["replace", "stacked"] = "replace"
    task_embedding_dim: Count = 768
    router_hidden_dim: Count = 768

    def __post_init__(self) -> None:
        _validate(self, "upcycle.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run; raises ``PlanError`` with the key, what it must be and what it is.

    ``batch_size`` counts samples of each task in a forward, over all processes; an optimiser step
    takes ``gradient_accumulation_steps`` times as many. ``steps`` are optimiser steps. ``name``
    is the config's file name without its suffix.
    """

    model: Text
    output: Path
    steps: Count
    name: Text = "recipe"
    data: Text | None = None
    data_folder: Path | None = None
    train: Literal["mtu", "all"] = "mtu"
    tasks: Names = ()
    upcycle: Annotated[Upcycling, Field(description="a table")] | None = None
    batch_size: BatchSize = 1
    gradient_accumulation_steps: Count = 1
    learning_rate: Positive = 1e-4
    router_learning_rate: Positive | None = None
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: CountFrom0 = 0
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    adam_weight_decay: NotNegative = 1e-2
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NotNegative = 1.0
    ema_decay: BelowOne = 0.0
    conditioning_dropout_prob: Third = 0.05
    snr_gamma: Positive | None = None
    seed: Seed = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    height: Count | None = None
    width: Count | None = None
    cache_latents: bool = False
    latents_dtype: Dtype = "fp32"
    latents: Path | None = None
    state: Path | None = None
    checkpointing_steps: Count = 500
    log_with: Logs = ("csv",)
    log_every: Count = 10
    output_dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        _validate(self)
        if self.data is not None and self.data_folder is not None:
            raise PlanError("data and data_folder are two training sets; give one of them")
        if self.upcycle is not None and not self.tasks:
            raise PlanError("upcycle makes experts for tasks; name the tasks")

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a run, as JSON has it.

        With a constant learning rate that does not include ``steps``: a run can be made longer.
        """
        skipped = {*_FREE, *(("steps",) if self.lr_scheduler == "constant" else ())}
        keys = [field.name for field in fields(self) if field.name not in skipped]
        identity = {key: getattr(self, key) for key in keys}
        if self.upcycle is not None:
            identity["upcycle"] = asdict(self.upcycle)
        identity["router_learning_rate"] = self.router_learning_rate or self.learning_rate
        return json.loads(json.dumps(identity, default=str))

    def state_folder(self) -> Path:
        """Where the run's state lies: ``state``, or a folder of the user's cache by output."""
        if self.state is not None:
            return self.state
        text = json.dumps([self.identity(), str(self.output.absolute())], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Path.home() / ".cache" / "mtu-export" / "training" / f"{self.name}-{digest}"

    @property
    def samples_a_step(self) -> int:
        """Samples of each task in an optimiser step."""
        return self.batch_size * self.gradient_accumulation_steps


_PATHS = ("output", "data_folder", "latents", "state")
_LISTS = ("tasks", "log_with")


def _validate(options: Recipe | Upcycling, prefix: str = "") -> None:
    """Raise ``PlanError`` for the first field whose value its annotation does not allow."""
    for name, annotation in _annotations(type(options)).items():
        value = getattr(options, name)
        try:
            TypeAdapter(annotation, config=_STRICT).validate_python(value)
        except (ValidationError, OverflowError):
            legal = _legal(annotation)
            raise PlanError(f"{prefix}{name} must be {legal}, got {shown(value)}") from None


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _legal(annotation: Any) -> str:
    """What an annotation allows, in words; of an optional one, besides ``None``."""
    first, *others = get_args(annotation) or (annotation,)
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, (first, *others)))
    for note in others:
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    return _LEGAL_VALUES[first] if first in _LEGAL_VALUES else _legal(first)


def read(path: Path) -> Recipe:
    """The recipe of a TOML file; paths in it are relative to its folder.

    Raises ``PlanError`` for a file that is no TOML, unknown keys, wrong types and values.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"no config {str(path)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path} cannot be read as TOML: {error}") from None
    legal = [field.name for field in fields(Recipe) if field.name != "name"]
    _refuse_unknown(document, legal, str(path))
    for key in ("model", "output", "steps"):
        if key not in document:
            raise PlanError(f"{path}: key {key!r} is missing")
    folder = path.absolute().parent
    options: dict[str, Any] = dict(document)
    for key in _PATHS:
        if isinstance(options.get(key), str) and options[key]:
            options[key] = _located(folder, options[key], f"{path}: {key}")
    for key in _LISTS:
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    try:
        if isinstance(options.get("upcycle"), dict):
            keys = [field.name for field in fields(Upcycling)]
            _refuse_unknown(options["upcycle"], keys, "[upcycle]")
            options["upcycle"] = Upcycling(**options["upcycle"])
        recipe = Recipe(name=path.stem or "recipe", **options)
    except PlanError as error:
        message = str(error)
        raise PlanError(
            message if message.startswith(str(path)) else f"{path}: {message}"
        ) from None
    model = _located(folder, recipe.model, f"{path}: model")
    tasks = tuple(
        str(_located(folder, task, f"{path}: tasks")) if task.endswith(".json") else task
        for task in recipe.tasks
    )
    return replace(recipe, model=str(model) if model.exists() else recipe.model, tasks=tasks)


def _located(folder: Path, text: str, where: str) -> Path:
    """A path of the config; raises ``PlanError`` for an impossible one, or an unknown ``~user``."""
    try:
        path = folder / Path(text).expanduser()
        path.exists()
        if "\0" in text:
            raise ValueError("it has a null character")
    except OSError as error:
        raise PlanError(f"{where} {shown(text)}: {os.strerror(error.errno or 0)}") from None
    except (RuntimeError, ValueError) as error:
        raise PlanError(f"{where} {shown(text)}: {error}") from None
    return path


def _refuse_unknown(table: Mapping[str, Any], legal: list[str], where: str) -> None:
    for key in table:
        if key not in legal:
            raise PlanError(f"{where}: unknown key {shown(key)}; legal: {', '.join(legal)}")
