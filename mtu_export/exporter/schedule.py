"""Diffusers schedulers as coefficient tables: probed, not re-derived.

A scheduler's own ``step`` is asked with unit impulses; what comes back are the coefficients of
:class:`~mtu_export.spec.Schedule`. Every table is then run against the scheduler itself. Nothing
that a checkpoint names is executed: its class is looked up among those of diffusers.
"""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging

from mtu_export import checkpoint
from mtu_export.spec import (
    HISTORY,
    MOST_PASSES,
    CheckpointError,
    Pass,
    PlanError,
    Schedule,
    UnknownName,
    Unsupported,
    shown,
)
from mtu_export.spec.catalog import SCHEDULERS, SD_DEFAULT

NAMES = tuple(SCHEDULERS)
_SHORT = ", ".join(name for name in NAMES if name.islower())
FLOOR_DB = 110.0
"""PSNR that every pass of a table must keep against its scheduler, both in float32."""
_FILE = Path("scheduler") / "scheduler_config.json"
_LARGEST = 100_000
_AMPLITUDES = (1.0, 1000.0)
_CURES = {"clip_sample": "false", "thresholding": "false"}
_NEGLIGIBLE = 1e-8
"""Of a row's largest coefficient: what may be left out of it."""
_EXACT = 1e-6
"""Of a row's largest coefficient: what an elimination may leave, as float32 rounds."""


# ------------------------------------------------------------------------------------- loading


def load(folder: Path | None, name: str | None) -> Any:
    """The diffusers scheduler of a checkpoint folder, or of ``name`` with the checkpoint's config.

    ``name`` is one of ``NAMES`` or of diffusers' scheduler classes; betas, prediction type and
    the like are carried over as ``from_config`` of diffusers does. Without ``scheduler/`` in the
    folder the config is ``SD_DEFAULT``, which :func:`origin` says. Raises ``UnknownName``,
    ``CheckpointError`` and ``Unsupported`` (a class whose package is not installed).
    """
    config, where = _config(folder)
    own = config.get("_class_name")
    if not isinstance(own, str) or not _is_known(own):
        raise CheckpointError(f"{where}: _class_name {shown(own)} is no scheduler of diffusers")
    chosen, settings = SCHEDULERS.get(name or own, (name or own, {}))
    if not _is_known(chosen):
        raise UnknownName("scheduler", chosen, NAMES)
    kind = _class(chosen)
    kept = _kept(kind, config, where)
    try:
        with _quiet():
            return kind.from_config({**kept, **settings})
    except Exception as error:  # whatever diffusers makes of a config that is not its own
        raise CheckpointError(f"{where}: {chosen} refuses it: {_reason(error)}") from None


def origin(folder: Path | None, name: str | None) -> str:
    """Where :func:`load` takes its scheduler from, in words for the user."""
    config, where = _config(folder)
    found = f"{where}, {shown(config.get('_class_name'))}"
    return found if name is None else f"{name} with the config of {found}"


def _config(folder: Path | None) -> tuple[Mapping[str, Any], str]:
    """The scheduler's config and its name in errors."""
    if folder is None or not (folder / _FILE.parent).exists():
        return SD_DEFAULT, "the default of Stable Diffusion 1.x (no scheduler/ in the checkpoint)"
    return checkpoint.read_json(folder / _FILE), str(_FILE)


def _is_known(name: str) -> bool:
    return name.endswith("Scheduler") and name in dir(diffusers.schedulers)


def _class(name: str) -> type[Any]:
    found = getattr(diffusers.schedulers, name)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise Unsupported(f"{name} needs a package that is not installed; choose from: {_SHORT}")
    return found


def _kept(kind: type[Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries that ``kind`` takes, checked against the types of its defaults."""
    rows = inspect.signature(kind.__init__).parameters
    kept = {key: config[key] for key in rows if key in config and key not in ("self", "kwargs")}
    for key, value in kept.items():
        if not _fits(value, rows[key].default):
            raise CheckpointError(f"{where}: {key} cannot be {shown(value)}")
    train = kept.get("num_train_timesteps", 1000)
    if not isinstance(train, int) or not 1 <= train <= MOST_PASSES:
        raise CheckpointError(
            f"{where}: num_train_timesteps must be 1 to {MOST_PASSES}, got {shown(train)}"
        )
    return kept


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the default's kind and of a sane size; null always is."""
    if isinstance(value, list):
        listed = default is None or isinstance(default, (list, tuple))
        return listed and len(value) <= MOST_PASSES and all(_is_number(row) for row in value)
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers' advice to training scripts off the screen."""
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:160]


# ------------------------------------------------------------------------------------- probing


def tables(scheduler: Any, counts: Sequence[int]) -> dict[int, Schedule]:
    """One schedule a step count; see :func:`table` for errors. No counts: ``PlanError``."""
    if not counts:
        raise PlanError("name at least one step count")
    return {steps: table(scheduler, steps) for steps in sorted(set(counts))}


def table(scheduler: Any, steps: int) -> Schedule:
    """The coefficients of every pass for this step count, for the denoiser's raw output.

    Raises ``PlanError`` for a count below 1 or above the training's, and ``Unsupported`` for a
    scheduler that is not linear (clipping, thresholding), draws noise, adds an offset, looks
    more than four passes back or cannot do this count.
    """
    name = type(scheduler).__name__
    _check_count(scheduler, steps)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(0)
            schedule = _probe(scheduler, steps)
            for amplitude in _AMPLITUDES:
                _prove(scheduler, steps, schedule, amplitude)
    except (PlanError, CheckpointError):
        raise
    except Exception as error:  # a step that wants other arguments, or cannot do this count
        raise Unsupported(f"{name} cannot do {steps} steps here: {_reason(error)}") from None
    return schedule


def _check_count(scheduler: Any, steps: int) -> None:
    most = getattr(scheduler.config, "num_train_timesteps", None) or MOST_PASSES
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        name = type(scheduler).__name__
        raise PlanError(f"{name}: steps must be 1 to {most}, got {shown(steps)}")


def _fresh(scheduler: Any, steps: int) -> Any:
    """A copy without a past, set to this count."""
    config = dict(scheduler.config)
    config.pop("_use_default_values", None)  # else a value set later would be forgotten
    copy = type(scheduler).from_config(config)
    copy.set_timesteps(steps)
    if not 1 <= len(copy.timesteps) <= MOST_PASSES:
        raise ValueError(f"{len(copy.timesteps)} passes, at most {MOST_PASSES} are written")
    return copy


def _scaled(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The denoiser's input; schedulers of flow matching scale nothing and have no method."""
    scale = getattr(scheduler, "scale_model_input", None)
    return x if scale is None else scale(x, t)


def _impulses(scheduler: Any, steps: int) -> Iterator[tuple[float, float, torch.Tensor]]:
    """Timestep, input scale and coefficients of each pass.

    With P passes the coefficients are [2P + 1] in float64: of x_0..x_{P−1}, of m_0..m_{P−1}, and
    the offset. Each x_i and m_i is an independent input here: component j of the sample is 1
    only at pass j, so a step's result reads as its derivatives.
    """
    copy = _fresh(scheduler, steps)
    count = len(copy.timesteps)
    for index, t in enumerate(copy.timesteps):
        x, m = torch.zeros(2, 1, 2 * count + 1, 1, 1, dtype=torch.float64)
        x[0, index] = 1
        m[0, count + index] = 1
        scale = float(_scaled(copy, x.clone(), t)[0, index])
        row = copy.step(m, t, x, return_dict=False)[0]
        yield float(t), scale, row.reshape(-1).double()


def _probe(scheduler: Any, steps: int) -> Schedule:
    """The table as the impulses give it; else the one with the shortest history that holds."""
    start = float(getattr(_fresh(scheduler, steps), "init_noise_sigma", 1.0))
    deepest = 0
    for history in (None, *range(1, HISTORY + 1)):
        passes: list[Pass] = []
        rows: deque[torch.Tensor] = deque(maxlen=HISTORY)
        for index, (timestep, scale, row) in enumerate(_checked(scheduler, steps)):
            rows.append(row)
            found = _shortened(rows, index, history)
            if found is None:
                deepest = index
                break
            passes.append(Pass(timestep=timestep, input_scale=scale, x=found[0], m=found[1]))
        else:
            return Schedule(init_noise_sigma=start, passes=tuple(passes))
    name = type(scheduler).__name__
    raise Unsupported(f"{name}, {steps} steps: pass {deepest} looks more than {HISTORY} back")


def _checked(scheduler: Any, steps: int) -> Iterator[tuple[float, float, torch.Tensor]]:
    """The impulses, refused where they are not finite, random or have an offset."""
    name = type(scheduler).__name__
    # Two runs share the random numbers between them: noise makes them differ.
    twice = zip(_impulses(scheduler, steps), _impulses(scheduler, steps), strict=True)
    for index, (found, (_, _, again)) in enumerate(twice):
        where = f"{name}, {steps} steps, pass {index} (timestep {found[0]:g})"
        row = found[2]
        if not torch.isfinite(row).all():
            raise Unsupported(f"{where}: the coefficients are not finite")
        if not torch.equal(row, again):
            raise Unsupported(f"{name} draws noise, so no table holds it; choose from: {_SHORT}")
        if row[-1].abs() > _NEGLIGIBLE * row.abs().max():
            raise Unsupported(f"{where}: zero in does not give zero out{_cure(scheduler)}")
        yield found


def _shortened(
    rows: Sequence[torch.Tensor], index: int, history: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The last of ``rows``, that of pass ``index``, on the newest ``history`` x and m; or null.

    Without ``history`` the row is taken as it is, if it looks no more than four back. But a
    scheduler may keep a state of its own (UniPC: the corrected sample) through which a step
    depends on all that was before. An earlier pass is an equation of the same unknowns,
    ``row_j · (x, m) − x_{j+1} = 0``: multiples of up to three of them take the past out.
    """
    count = (len(rows[-1]) - 1) // 2
    past = max(0, index + 1 - (history or HISTORY))
    row = rows[-1]
    size = row.abs().max()

    def old(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:past], values[count : count + past]])

    def left() -> float:
        return float(old(row).abs().max()) if past else 0.0

    if left() > _NEGLIGIBLE * size:
        if history is None:
            return None
        for earlier in range(1, len(rows)):
            equations = [rows[-1 - back] for back in range(1, earlier + 1)]
            columns = torch.stack([old(equation) for equation in equations], dim=1)
            solved = torch.linalg.lstsq(columns, old(rows[-1])[:, None], driver="gelsd").solution
            row = rows[-1].clone()
            for back, (equation, factor) in enumerate(zip(equations, solved[:, 0], strict=True), 1):
                row -= factor * equation
                row[index + 1 - back] += factor
            if left() <= _EXACT * size:
                break
        else:
            return None
    newest = range(index, past - 1, -1)
    pad = [0.0] * (HISTORY - len(newest))
    return (
        tuple([float(row[i]) for i in newest] + pad),
        tuple([float(row[count + i]) for i in newest] + pad),
    )


def _cure(scheduler: Any) -> str:
    """What in the scheduler's config is the likely cause."""
    on = [key for key in _CURES if getattr(scheduler.config, key, False)]
    return f": {on[0]} is on; set it to {_CURES[on[0]]} in {_FILE}" if on else ""


# ------------------------------------------------------------------------------------- proving


def _denoiser(amplitude: float) -> Any:
    """A nonlinear stand-in for a UNet on [1, 4, 8, 8] that mixes pixels and knows the time."""
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 4, 3, 3, generator=random) / 8

    def denoise(scaled: torch.Tensor, timestep: float) -> torch.Tensor:
        mixed = torch.nn.functional.conv2d(scaled / amplitude, weight, padding=1)
        return amplitude * torch.tanh(mixed + torch.cos(torch.tensor(timestep / 100)))

    return denoise


def _prove(scheduler: Any, steps: int, schedule: Schedule, amplitude: float) -> None:
    """Run table and scheduler side by side in float32, each from its own results."""
    name = type(scheduler).__name__
    copy = _fresh(scheduler, steps)
    denoise = _denoiser(amplitude)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * amplitude
    wanted = noise * getattr(copy, "init_noise_sigma", 1.0)
    past: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=HISTORY)
    found = noise * schedule.init_noise_sigma
    for index, (row, t) in enumerate(zip(schedule.passes, copy.timesteps, strict=True)):
        output = denoise(_scaled(copy, wanted, t), float(t))
        wanted = copy.step(output, t, wanted, return_dict=False)[0]
        past.appendleft((found, denoise(row.input_scale * found, row.timestep)))
        found = sum(
            (a * x + b * m for a, b, (x, m) in zip(row.x, row.m, past, strict=False)),
            torch.zeros_like(found),
        )
        rmse = (found - wanted).double().square().mean().sqrt()
        if not rmse <= wanted.abs().max() * 10 ** (-FLOOR_DB / 20):
            raise Unsupported(
                f"{name}, {steps} steps, pass {index} (timestep {row.timestep:g}): "
                f"the step is not linear{_cure(scheduler)}"
            )
