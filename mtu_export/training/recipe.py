"""The config of a training run: every key checked, unknown ones refused."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mtu_export.spec import PlanError, shown

_LARGEST, _LARGEST_BATCH, _LARGEST_SEED = 10**9, 10**6, 2**63 - 1
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

    experts: int = 4
    rescale: bool = False
    task_norm: str = "replace"
    task_embedding_dim: int = 768
    router_hidden_dim: int = 768

    def __post_init__(self) -> None:
        _check(self, _UPCYCLING, "upcycle.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run; raises ``PlanError`` with the key, what it must be and what it is.

    ``batch_size`` counts samples of each task in a forward, over all processes; an optimiser step
    takes ``gradient_accumulation_steps`` times as many. ``steps`` are optimiser steps. ``name``
    is the config's file name without its suffix.
    """

    model: str
    output: Path
    steps: int
    name: str = "recipe"
    data: str | None = None
    data_folder: Path | None = None
    train: str = "mtu"
    tasks: tuple[str, ...] = ()
    upcycle: Upcycling | None = None
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    router_learning_rate: float | None = None
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    conditioning_dropout_prob: float = 0.05
    snr_gamma: float | None = None
    seed: int = 0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    height: int | None = None
    width: int | None = None
    cache_latents: bool = False
    latents_dtype: str = "fp32"
    latents: Path | None = None
    state: Path | None = None
    checkpointing_steps: int = 500
    log_with: tuple[str, ...] = ("csv",)
    log_every: int = 10
    output_dtype: str = "fp32"

    def __post_init__(self) -> None:
        _check(self, _RECIPE, "")
        if self.data is not None and self.data_folder is not None:
            raise PlanError("data and data_folder are two training sets; give one of them")
        if self.upcycle is not None and not self.tasks:
            raise PlanError("upcycle makes experts for tasks; name the tasks")

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a run, as JSON has it.

        With a constant learning rate that does not include ``steps``: a run can be made longer.
        """
        skipped = {*_FREE, *(("steps",) if self.lr_scheduler == "constant" else ())}
        rows = {row.name: getattr(self, row.name) for row in fields(self)}
        found = {key: value for key, value in rows.items() if key not in skipped}
        if self.upcycle is not None:
            found["upcycle"] = {r.name: getattr(self.upcycle, r.name) for r in fields(Upcycling)}
        found["router_learning_rate"] = self.router_learning_rate or self.learning_rate
        return json.loads(json.dumps(found, default=str))

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


Rule = tuple[Callable[[Any], bool], str]


def _count(least: int = 1, most: int = _LARGEST) -> Rule:
    def legal(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and least <= value <= most

    return legal, f"an integer from {least} to {most}"


def _number(low: float, high: float = _LARGEST, *, open_low: bool = False) -> Rule:
    def legal(value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and low <= value <= high and not (open_low and value == low)

    said = f"above {low:g}, at most" if open_low else f"from {low:g} to"
    return legal, f"a number {said} {high:g}"


def _below_one() -> Rule:
    legal, _ = _number(0)
    return (lambda value: legal(value) and value < 1), "a number from 0, below 1"


def _choice(*names: str) -> Rule:
    return (lambda value: value in names), " or ".join(map(repr, names))


def _maybe(rule: Rule) -> Rule:
    return (lambda value: value is None or rule[0](value)), rule[1]


def _flag() -> Rule:
    return (lambda value: isinstance(value, bool)), "true or false"


def _text() -> Rule:
    return (lambda value: isinstance(value, str) and bool(value)), "a string"


def _path() -> Rule:
    return (lambda value: isinstance(value, Path)), "a path"


def _names(*legal: str) -> Rule:
    def check(value: Any) -> bool:
        strings = isinstance(value, tuple) and all(isinstance(row, str) for row in value)
        return strings and len(set(value)) == len(value) and not (legal and set(value) - {*legal})

    return check, "a list of " + (" and ".join(map(repr, legal)) if legal else "names, each once")


_UPCYCLING: Mapping[str, Rule] = {
    "experts": _count(),
    "rescale": _flag(),
    "task_norm": _choice("replace", "stacked"),
    "task_embedding_dim": _count(),
    "router_hidden_dim": _count(),
}
_RECIPE: Mapping[str, Rule] = {
    "model": _text(),
    "output": _path(),
    "steps": _count(),
    "name": _text(),
    "data": _maybe(_text()),
    "data_folder": _maybe(_path()),
    "train": _choice("mtu", "all"),
    "tasks": _names(),
    "upcycle": ((lambda value: value is None or isinstance(value, Upcycling)), "a table"),
    "batch_size": _count(1, _LARGEST_BATCH),
    "gradient_accumulation_steps": _count(),
    "learning_rate": _number(0, open_low=True),
    "router_learning_rate": _maybe(_number(0, open_low=True)),
    "lr_scheduler": _choice("constant", "cosine"),
    "lr_warmup_steps": _count(0),
    "adam_beta1": _below_one(),
    "adam_beta2": _below_one(),
    "adam_weight_decay": _number(0),
    "adam_epsilon": _number(0, open_low=True),
    "max_grad_norm": _number(0),
    "ema_decay": _below_one(),
    "conditioning_dropout_prob": _number(0, 1 / 3),
    "snr_gamma": _maybe(_number(0, open_low=True)),
    "seed": _count(0, _LARGEST_SEED),
    "mixed_precision": _choice("no", "bf16"),
    "gradient_checkpointing": _flag(),
    "height": _maybe(_count()),
    "width": _maybe(_count()),
    "cache_latents": _flag(),
    "latents_dtype": _choice("fp32", "fp16"),
    "latents": _maybe(_path()),
    "state": _maybe(_path()),
    "checkpointing_steps": _count(),
    "log_with": _names("csv", "tensorboard"),
    "log_every": _count(),
    "output_dtype": _choice("fp32", "fp16"),
}
_PATHS = ("output", "data_folder", "latents", "state")
_LISTS = ("tasks", "log_with")


def _check(found: Any, rules: Mapping[str, Rule], prefix: str) -> None:
    for key, (legal, wanted) in rules.items():
        value = getattr(found, key)
        if not legal(value):
            raise PlanError(f"{prefix}{key} must be {wanted}, got {shown(value)}")


def read(path: Path) -> Recipe:
    """The recipe of a TOML file; paths in it are relative to its folder.

    Raises ``PlanError`` for a file that is no TOML, unknown keys, wrong types and values.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"no config {str(path)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path} cannot be read as TOML: {error}") from None
    legal = [key for key in _RECIPE if key != "name"]
    _refuse_unknown(found, legal, str(path))
    for key in ("model", "output", "steps"):
        if key not in found:
            raise PlanError(f"{path}: key {key!r} is missing")
    home = path.absolute().parent
    words: dict[str, Any] = dict(found)
    for key in _PATHS:
        if isinstance(words.get(key), str) and words[key]:
            words[key] = _located(home, words[key], f"{path}: {key}")
    for key in _LISTS:
        if isinstance(words.get(key), list):
            words[key] = tuple(words[key])
    try:
        if isinstance(words.get("upcycle"), dict):
            keys = list(_UPCYCLING)
            _refuse_unknown(words["upcycle"], keys, "[upcycle]")
            words["upcycle"] = Upcycling(**words["upcycle"])
        recipe = Recipe(name=path.stem or "recipe", **words)
    except PlanError as error:
        message = str(error)
        raise PlanError(
            message if message.startswith(str(path)) else f"{path}: {message}"
        ) from None
    model = _located(home, recipe.model, f"{path}: model")
    tasks = tuple(
        str(_located(home, t, f"{path}: tasks")) if t.endswith(".json") else t for t in recipe.tasks
    )
    return replace(recipe, model=str(model) if model.exists() else recipe.model, tasks=tasks)


def _located(home: Path, word: str, where: str) -> Path:
    """A path of the config; raises ``PlanError`` for one that no system has, or another's ``~``."""
    try:
        found = home / Path(word).expanduser()
        found.exists()
        if "\0" in word:
            raise ValueError("it has a null character")
    except OSError as error:
        raise PlanError(f"{where} {shown(word)}: {os.strerror(error.errno or 0)}") from None
    except (RuntimeError, ValueError) as error:
        raise PlanError(f"{where} {shown(word)}: {error}") from None
    return found


def _refuse_unknown(found: Mapping[str, Any], legal: list[str], where: str) -> None:
    for key in found:
        if key not in legal:
            raise PlanError(f"{where}: unknown key {shown(key)}; legal: {', '.join(legal)}")
