"""Diffusers schedulers as coefficient tables: probed, not re-derived.

A scheduler's ``step`` is called with unit impulses; its responses are the coefficients of a
:class:`~mtu_export.spec.Schedule`. Every table is then run against the scheduler itself. A
checkpoint cannot make anything else run: its class is looked up among those of diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.exporter.probe import (
    CONFIG_FILE,
    SHORT_NAMES,
    Start,
    pristine_copy,
    probe,
    prove,
    quiet,
    reason,
)
from mtu_export.spec import (
    MOST_PASSES,
    CheckpointError,
    PlanError,
    Schedule,
    UnknownName,
    Unsupported,
    shown,
)
from mtu_export.spec.catalog import SCHEDULERS, SD_DEFAULT

NAMES = tuple(SCHEDULERS)
_LARGEST = 100_000


def load(folder: Folder | None, name: str | None) -> Any:
    """The diffusers scheduler of a checkpoint folder, or of ``name`` with the checkpoint's config.

    ``name`` is one of ``NAMES`` or of diffusers' scheduler classes; betas, prediction type and
    the like are carried over as ``from_config`` of diffusers does. Without ``scheduler/`` in the
    folder the config is ``SD_DEFAULT``, which :func:`origin` says. Raises ``UnknownName``,
    ``CheckpointError`` and ``Unsupported`` (a class whose package is not installed).
    """
    config, where = _config(folder)
    default = config.get("_class_name")
    if not isinstance(default, str) or not _is_scheduler(default):
        raise CheckpointError(f"{where}: _class_name {shown(default)} is not a diffusers scheduler")
    chosen, settings = SCHEDULERS.get(name or default, (name or default, {}))
    if not _is_scheduler(chosen):
        raise UnknownName("scheduler", chosen, NAMES)
    kind = _class(chosen)
    kept = _kept(kind, config, where)
    try:
        with quiet():
            return kind.from_config({**kept, **settings})
    except MemoryError:
        raise
    except Exception as error:  # diffusers may raise anything for a foreign config
        raise CheckpointError(f"{where}: {chosen} refuses it: {reason(error)}") from None


def origin(folder: Folder | None, name: str | None) -> str:
    """Where :func:`load` takes its scheduler from, for messages."""
    config, where = _config(folder)
    source = f"{where}, {shown(config.get('_class_name'))}"
    return source if name is None else f"{name} with the config of {source}"


def _config(folder: Folder | None) -> tuple[Mapping[str, Any], str]:
    """The scheduler's config and its name in errors."""
    if folder is None or not (folder / CONFIG_FILE.parent).exists():
        refusal = None if folder is None else checkpoint.refusal(folder, CONFIG_FILE.parent.name)
        if refusal is not None:
            raise PlanError(refusal)
        return SD_DEFAULT, "the default of Stable Diffusion 1.x (no scheduler/ in the checkpoint)"
    return checkpoint.read_json(folder / CONFIG_FILE), str(CONFIG_FILE)


def _is_scheduler(name: str) -> bool:
    return name.endswith("Scheduler") and name in dir(diffusers.schedulers)


def _class(name: str) -> type[Any]:
    kind = getattr(diffusers.schedulers, name)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise Unsupported(
            f"{name} needs a package that is not installed; choose from: {SHORT_NAMES}"
        )
    return kind


def _kept(kind: type[Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries that ``kind`` takes, checked against the types of its defaults."""
    parameters = inspect.signature(kind.__init__).parameters
    names = parameters.keys() - {"self", "kwargs"}
    kept = {key: config[key] for key in parameters if key in config and key in names}
    for key, value in kept.items():
        if not _fits(value, parameters[key].default):
            raise CheckpointError(f"{where}: {key} cannot be {shown(value)}")
    train = kept.get("num_train_timesteps", 1000)
    if not isinstance(train, int) or not 1 <= train <= MOST_PASSES:
        raise CheckpointError(
            f"{where}: num_train_timesteps must be 1 to {MOST_PASSES}, got {shown(train)}"
        )
    return kept


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default and a sane size; None always passes."""
    if isinstance(value, list):
        listed = default is None or isinstance(default, (list, tuple))
        return listed and len(value) <= MOST_PASSES and all(map(_is_number, value))
    if value is None or isinstance(value, bool):
        return value is None or default is None or isinstance(default, bool)
    if isinstance(value, (int, float)):
        exact = isinstance(default, int) and not isinstance(value, int)
        numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
        return _is_number(value) and not exact and (default is None or numeric)
    return isinstance(value, str) and (default is None or isinstance(default, str))


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= _LARGEST


GOLDEN_STEPS = 4
"""Step count of the golden loop: short, as a live router runs it, and always baked."""


@dataclass(frozen=True, kw_only=True)
class Baked:
    """Tables by step count and strength; ``golden`` is the golden loop's count.

    ``skipped`` maps a count without any table to the reason.
    """

    scheduler: str
    prediction_type: str
    tables: Mapping[tuple[int, float | None], Schedule]
    golden: int
    skipped: Mapping[int, str]

    def golden_table(self, strength: float | None) -> Schedule:
        """The golden loop's table: from noise, or of the nearest strength that has one."""
        strengths = [s for steps, s in self.tables if steps == self.golden and s is not None]
        if strength is not None:
            wanted = strength
            strength = min(strengths, key=lambda each: abs(each - wanted))
        return self.tables[self.golden, strength]


def bake(
    scheduler: Any,
    counts: Sequence[int],
    strengths: Sequence[float | None] = (None,),
    *,
    required: bool,
) -> Baked:
    """The tables of ``counts`` and of the golden loop, each from ``strengths`` (None: from noise).

    A count that the scheduler does not support is an error where the user named it (``required``),
    and otherwise skipped with its reason; see :func:`table` for errors. The golden loop falls back
    to the smallest count that works. A strength that leaves no pass of a count is left out there.
    """
    pristine = pristine_copy(scheduler)
    baked: dict[tuple[int, float | None], Schedule] = {}
    refusals: dict[int, PlanError] = {}
    for steps in sorted({GOLDEN_STEPS, *counts}):
        try:
            able = [s for s in strengths if s is None or int(steps * s) > 0]
            baked |= {(steps, strength): _table(pristine, steps, strength) for strength in able}
        except PlanError as error:
            if required and steps in counts:
                raise
            refusals[steps] = error
    if not baked:
        raise next(
            iter(refusals.values()), PlanError("no strength leaves a pass of any step count")
        )
    done = [n for n, _ in baked if all((n, s) in baked for s in strengths if s is None)]
    return Baked(
        scheduler=type(scheduler).__name__,
        prediction_type=scheduler.config.get("prediction_type", "epsilon"),
        tables=baked,
        golden=GOLDEN_STEPS if GOLDEN_STEPS in done else min(done),
        skipped={steps: str(error) for steps, error in refusals.items()},
    )


def tables(scheduler: Any, counts: Sequence[int]) -> dict[int, Schedule]:
    """One schedule for each step count; see :func:`table` for errors. No counts: ``PlanError``."""
    if not counts:
        raise PlanError("name at least one step count")
    pristine = pristine_copy(scheduler)
    return {steps: _table(pristine, steps) for steps in sorted(set(counts))}


def table(scheduler: Any, steps: int, strength: float | None = None) -> Schedule:
    """The coefficients of every pass for this step count, for the denoiser's raw output.

    With ``strength`` in (0, 1] the loop starts inside the schedule, from a picture's latent and
    noise, as img2img pipelines of diffusers do. Raises ``PlanError`` for a count below 1 or above
    the training's and for a strength that is out of range or leaves no pass, and ``Unsupported``
    for a scheduler that is not linear (clipping, thresholding), draws other noise than standard
    normal, adds an offset, looks more than four passes back or cannot do this count.
    """
    return _table(pristine_copy(scheduler), steps, strength)


def _table(pristine: Any, steps: int, strength: float | None = None) -> Schedule:
    name = type(pristine).__name__
    _check_count(pristine, steps)
    _check_strength(strength)
    start = Start(steps, strength)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(0)
            schedule = probe(pristine, start)
            prove(pristine, start, schedule)
    except (PlanError, CheckpointError, MemoryError):
        raise
    except Exception as error:  # a step that wants other arguments, or cannot do this count
        raise Unsupported(f"{name} cannot do {start.label} here: {reason(error)}") from None
    return schedule


def _check_count(scheduler: Any, steps: int) -> None:
    most = getattr(scheduler.config, "num_train_timesteps", None) or MOST_PASSES
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        name = type(scheduler).__name__
        raise PlanError(f"{name}: steps must be 1 to {most}, got {shown(steps)}")


def _check_strength(strength: float | None) -> None:
    """Refuse what is no number in (0, 1]; None is a start from noise alone."""
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if strength is not None and not (number and 0 < strength <= 1):
        raise PlanError(f"strength must be above 0 and at most 1, got {shown(strength)}")
