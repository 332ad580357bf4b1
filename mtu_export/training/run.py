"""A run from its recipe to the checkpoint: what is checked, made, taken up, saved and written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.spec import CheckpointError, Interrupted, ParityError, PlanError, ResourceError
from mtu_export.storage.draft import refuse_existing
from mtu_export.training import data, log, model, state
from mtu_export.training.batches import Encoder, Live, Source, index_by_task
from mtu_export.training.data import Folder, Samples
from mtu_export.training.latents import Cached
from mtu_export.training.loop import Trainer, seconds
from mtu_export.training.recipe import Recipe
from mtu_export.training.text import Texts
from mtu_export.training.watch import Console, Silent, ctrl_c


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a few steps on the real sizes tell: memory in bytes, of the GPU where there is one."""

    steps: int
    seconds_a_step: float
    samples_per_second: float
    hours: float
    memory: int
    trained: int
    device: str


def train(recipe: Recipe, samples: Samples | None, *, console: Console | None, force: bool) -> Path:
    """See :func:`mtu_export.training.train`."""
    with torch.random.fork_rng(), _prepared(recipe, samples, console, force) as prepared:
        trained, trainer, shown = prepared
        _go(trainer, recipe, shown)
        if trainer.accelerator.is_main_process:
            with shown.stage("write"):
                model.write(
                    trained,
                    trainer.unet,
                    trainer.values(),
                    recipe.output,
                    dtype=recipe.output_dtype,
                    force=force,
                )
        trainer.accelerator.wait_for_everyone()
    return recipe.output


def rehearse(
    recipe: Recipe,
    samples: Samples | None,
    *,
    console: Console | None,
    force: bool,
    seconds: float,
) -> Rehearsal:
    """See :func:`mtu_export.training.rehearse`."""
    with torch.random.fork_rng(), _prepared(recipe, samples, console, force) as prepared:
        _, trainer, shown = prepared
        with shown.stage("rehearse"):
            trainer.step()  # makes the optimiser's memory, fills caches
            begin, done = _now(trainer), 0
            while done < 100 and (done == 0 or _now(trainer) - begin < seconds):
                trainer.step()
                done += 1
            took = (_now(trainer) - begin) / done
        number = recipe.samples_a_step * len(trainer.tasks)
        return Rehearsal(
            steps=recipe.steps,
            seconds_a_step=took,
            samples_per_second=number / took,
            hours=took * recipe.steps / 3600,
            memory=_memory(trainer.device),
            trained=sum(parameter.numel() for parameter in trainer.parameters),
            device=str(trainer.device),
        )


def _now(trainer: Trainer) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return seconds()


def _memory(device: torch.device) -> int:
    """The most bytes that were in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# ------------------------------------------------------------------------------- before a step


def image_size(recipe: Recipe, config: Any, folder: Path) -> tuple[int, int]:
    """Height and width in pixels; the UNet's own where the recipe has none.

    Raises ``PlanError`` for sides whose latents do not halve at every level.
    """
    layout = PipelineLayout.read(folder, config)
    step = layout.size_step
    for name in ("height", "width"):
        side = getattr(recipe, name)
        if side is not None and side % step:
            raise PlanError(f"{name} must be a multiple of {step}, got {side}")
    return layout.image_size(recipe.height, recipe.width)


def _samples(recipe: Recipe, samples: Samples | None, size: tuple[int, int]) -> Samples:
    if samples is not None:
        return samples
    if recipe.data_folder is not None:
        return Folder(recipe.data_folder, *size)
    if recipe.data is None:
        raise PlanError("name the training set: data = 'package.module:name' or data_folder")
    return data.load(recipe.data)


@contextmanager
def _prepared(
    recipe: Recipe, samples_given: Samples | None, console: Console | None, force: bool
) -> Iterator[tuple[model.Model, Trainer, Console]]:
    """Model, trainer at the step where its state is, and the console of this process."""
    log.check(recipe.log_with)
    trained = model.find(recipe)
    refuse_existing(recipe.output, force, trained.marker, [trained.folder])
    if trained.folder.resolve() in recipe.output.resolve().parents:
        raise PlanError(f"output {str(recipe.output)!r} lies inside the model {trained.folder}")
    _refuse_inside(recipe)
    size = image_size(recipe, trained.config, trained.folder)
    schedule = model.noise_schedule(trained.folder)
    samples = _samples(recipe, samples_given, size)
    indices, others = index_by_task(samples, trained.tasks)
    state_folder = recipe.state_folder()
    accelerator = _accelerator(recipe)
    main = accelerator.is_main_process
    shown = console if console is not None and main else Silent()
    if others:
        counts = ", ".join(f"{count} of {name}" for name, count in others.items())
        shown.warn(f"samples of tasks that are not trained are left out: {counts[:300]}")
    _make_folder(state_folder)
    with state.exclusive_lock(state_folder) if main else nullcontext():
        try:
            with accelerator.main_process_first(), shown.stage("model"):
                trained = model.make(trained, recipe, state_folder)
            trainer = _trainer(
                recipe, trained, samples, indices, size, schedule, accelerator, shown
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted before the first step; what is made stays in {state_folder}; "
                "run the same command to continue"
            ) from None
        try:
            yield trained, trainer, shown
        finally:
            trainer.close()


def _refuse_inside(recipe: Recipe) -> None:
    """Refuse an output that is or holds what the run reads or keeps: it would be replaced."""
    out = recipe.output.resolve()
    folders = {
        "state": recipe.state_folder(),
        "latents": recipe.latents,
        "data_folder": recipe.data_folder,
    }
    for key, path in folders.items():
        if path is not None and out in (path.resolve(), *path.resolve().parents):
            raise PlanError(
                f"output {str(recipe.output)!r} is or holds {key} {str(path)!r}; name another"
            )
        if path is not None and path.resolve() in out.parents:
            raise PlanError(
                f"output {str(recipe.output)!r} lies inside {key} {str(path)!r}; name another"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {os.strerror(error.errno or 0)}") from None


def _trainer(
    recipe: Recipe,
    trained: model.Model,
    samples: Samples,
    indices: Mapping[str, list[int]],
    size: tuple[int, int],
    schedule: DDPMScheduler,
    accelerator: Any,
    shown: Console,
) -> Trainer:
    """The trainer on its device, with the cache filled and the state taken up."""
    with shown.stage("load"):
        device = accelerator.device
        encoder = Encoder(trained.folder, device)
        texts = Texts(trained.folder, trained.config, device)
        unet, names = model.load(trained, recipe.train)
        unet.to(device)
        if recipe.gradient_checkpointing:
            unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if encoder.channels != trained.config["out_channels"]:
        raise CheckpointError(
            f"{trained.folder}: the VAE has {encoder.channels} latent channels, the UNet "
            f"{trained.config['out_channels']}"
        )
    live = Live(samples, indices, encoder, size)
    source: Source = live
    if recipe.cache_latents:
        source = Cached(live, trained, recipe, accelerator, shown)
    trainer = Trainer(
        recipe=recipe,
        accelerator=accelerator,
        unet=unet,
        names=names,
        tasks=trained.tasks,
        multi=trained.multi,
        source=source,
        counts={name: len(places) for name, places in indices.items()},
        texts=texts,
        schedule=schedule,
        latent=(encoder.channels, *live.latent),
        size=size,
        run_inputs={
            **model.digests(trained.folder),
            "tasks": [task.to_json() for task in trained.tasks],
            "fingerprint of the data": getattr(samples, "fingerprint", None),
        },
    )
    last = state.newest(recipe.state_folder())
    if last is not None:
        trainer.restore(*state.read(last, _identity(trainer)))
    require_same_step(trainer)
    return trainer


def require_same_step(trainer: Trainer) -> None:
    """Refuse processes that do not see the same state; raises ``PlanError`` in all of them."""
    here = torch.tensor([trainer.progress.step], device=trainer.device)
    steps = sorted(set(trainer.accelerator.gather(here).tolist()))
    if len(steps) > 1:
        raise PlanError(
            f"processes are at steps {steps[0]} and {steps[-1]}: {trainer.recipe.state_folder()} "
            "must be on a disk that all of them share"
        )


def _accelerator(recipe: Recipe) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator()
    if recipe.batch_size < accelerator.num_processes:
        raise PlanError(
            f"batch_size must be at least the number of processes, "
            f"{accelerator.num_processes}, got {recipe.batch_size}"
        )
    return accelerator


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What a state must be of: the recipe's numbers, the model, tasks and data."""
    counts = {f"samples of {name}": count for name, count in trainer.counts.items()}
    return {**trainer.recipe.identity(), **counts, **trainer.run_inputs}


# --------------------------------------------------------------------------------- the steps


def _go(trainer: Trainer, recipe: Recipe, shown: Console) -> None:
    """The steps that are left; the state is saved on the way, at the end, on Ctrl-C and errors."""
    progress, folder = trainer.progress, recipe.state_folder()
    main = trainer.accelerator.is_main_process
    if progress.step > recipe.steps:
        raise PlanError(f"{folder} is at step {progress.step} already; steps is {recipe.steps}")
    if main:
        state.check_disk(folder, 2 * trainer.state_bytes, "the state")  # the next beside the last
    loss_log = log.Log(folder, recipe.log_with if main else (), progress.step)
    begin, stopped = seconds() - progress.seconds, False
    saved = progress.step
    shown.say(f"state: {folder}, step {progress.step} of {recipe.steps}", always=True)
    try:
        with ctrl_c() as stop, shown.progress("train") as advance:
            while progress.step < recipe.steps and not stopped:
                losses, stopped = trainer.step(lambda: stop.requested)
                progress.seconds = seconds() - begin
                note = _note(trainer, loss_log, losses, shown)
                advance(progress.step, recipe.steps, note)
                ends = stopped or progress.step == recipe.steps
                if main and (ends or progress.step % recipe.checkpointing_steps == 0):
                    state.save(folder, progress, _identity(trainer), trainer.tensors())
                    saved = progress.step
    except KeyboardInterrupt:
        stopped = True
    except (OSError, ResourceError):
        raise  # no disk for the log or the state
    except Exception as error:
        # data that fail leave the weights as they were; an infinite loss says that they may be bad
        if main and saved < progress.step and not isinstance(error, ParityError):
            state.save(folder, progress, _identity(trainer), trainer.tensors())
            saved = progress.step
        if not isinstance(error, (CheckpointError, ParityError, PlanError)):
            raise
        raise type(error)(f"{error}; {_kept(saved, folder)}") from None
    finally:
        loss_log.close()
    if stopped and progress.step < recipe.steps:
        kept = _kept(saved, folder)
        raise Interrupted(f"interrupted; {kept}; run the same command to continue")


def _kept(saved: int, folder: Path) -> str:
    return f"the state of step {saved} is in {folder}" if saved else f"no state is in {folder} yet"


def _note(trainer: Trainer, loss_log: log.Log, losses: dict[str, float], shown: Console) -> str:
    """Add the losses of a step, write a row of the log when it is due; the text for the bar."""
    progress, recipe = trainer.progress, trainer.recipe
    for name, value in losses.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value
    progress.count += 1
    note = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    if progress.step % recipe.log_every == 0 or progress.step == recipe.steps:
        means = {name: value / progress.count for name, value in progress.sums.items()}
        samples = progress.count * recipe.samples_a_step * len(means)
        rate = samples / max(1e-9, progress.seconds - progress.mark)
        lr = trainer.optimizer.param_groups[0]["lr"]
        loss_log.write(progress.step, means, lr, rate, progress.seconds)
        mean = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        shown.say(f"step {progress.step} of {recipe.steps}: {mean}, {rate:.1f} samples/s")
        progress.sums, progress.count, progress.mark = {}, 0, progress.seconds
    return note
