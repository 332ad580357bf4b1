"""Eq. 2: the noise-prediction loss summed over tasks, one optimiser step for all of them.

Noise, timesteps, dropout and the order of samples are functions of (seed, step, task); what a
step needs besides is in the state. So a resumed run equals one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from mtu_export.spec import CheckpointError, ParityError, PlanError, Task
from mtu_export.training.batches import Batch, Source, widest, without_image
from mtu_export.training.draws import Draws, Order, draws, dropped, seed_of
from mtu_export.training.recipe import Recipe
from mtu_export.training.state import Progress
from mtu_export.training.text import Texts

StepInputs = list[tuple[Task, list[tuple[Batch, Draws]]]]
"""Batches and draws of a step, by task and forward."""


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step (from 0): linear warm-up, then constant or half a cosine to 0."""
    warm = recipe.lr_warmup_steps
    if step < warm:
        return recipe.learning_rate * step / max(1, warm)
    if recipe.lr_scheduler == "constant":
        return recipe.learning_rate
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def is_router_parameter(name: str) -> bool:
    """Whether a parameter is of a router or a task embedding.

    Every input of a router's ReLUs is a task embedding, so each step of Adam moves them all by the
    rate times the embedding's size; a rate that suits experts can leave no unit of them alive.
    """
    return name == "task_embedding.weight" or ".ff.router." in name


def snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights [n] of the loss (Hang et al. 2023) for the schedule's prediction type."""
    alphas = schedule.alphas_cumprod.cpu().double()[timesteps.cpu()]
    snr = alphas / (1 - alphas)
    epsilon = schedule.config["prediction_type"] == "epsilon"
    weights = snr.clamp(max=gamma) / (snr if epsilon else snr + 1)
    # the last step of zero-SNR betas has no signal: epsilon says nothing there
    return torch.where(snr > 0, weights, 0.0).float().to(timesteps.device)


def slices(recipe: Recipe, process: int, processes: int) -> list[slice]:
    """This process's part of each forward's samples, in the step's draws."""
    size = recipe.batch_size
    begin, end = process * size // processes, (process + 1) * size // processes
    starts = range(0, recipe.samples_a_step, size)
    return [slice(start + begin, start + end) for start in starts]


@dataclass(kw_only=True)
class Trainer:
    """UNet, optimiser and averages of a run; :meth:`step` does one step of them."""

    recipe: Recipe
    accelerator: Any
    unet: nn.Module
    names: Sequence[str]
    tasks: Sequence[Task]
    multi: bool
    source: Source
    counts: Mapping[str, int]
    texts: Texts
    schedule: DDPMScheduler
    latent: tuple[int, int, int]
    size: tuple[int, int]
    run_inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the run run_inputs with: digests of the model, its tasks, the data's fingerprint."""
    progress: Progress = field(default_factory=Progress)
    prefetch: bool | None = None
    """Whether the next step is prepared in a thread; None: where there is a GPU."""

    def __post_init__(self) -> None:
        recipe, parameters = self.recipe, dict(self.unet.named_parameters())
        self.device: torch.device = self.accelerator.device
        self.names = sorted(self.names, key=is_router_parameter)  # as the optimiser's groups
        self.parameters = [parameters[name] for name in self.names]
        rate = recipe.router_learning_rate or recipe.learning_rate
        router = [name for name in self.names if is_router_parameter(name)]
        others = [name for name in self.names if not is_router_parameter(name)]
        if recipe.router_learning_rate is not None and not router:
            raise PlanError("router_learning_rate: what is trained has no router")
        groups = [
            {"params": [parameters[name] for name in others], "scale": 1.0},
            {
                "params": [parameters[name] for name in router],
                "scale": rate / recipe.learning_rate,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            weight_decay=recipe.adam_weight_decay,
            eps=recipe.adam_epsilon,
            fused=self.device.type == "cuda" or None,
        )
        self.ema: Any = None
        if recipe.ema_decay > 0:
            from diffusers.training_utils import EMAModel

            self.ema = EMAModel(self.parameters, decay=recipe.ema_decay, foreach=True)
        self.prefetch = self.device.type == "cuda" if self.prefetch is None else self.prefetch
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[StepInputs]] | None = None
        self.orders = {
            task.name: Order(recipe.seed, task.name, self.counts[task.name]) for task in self.tasks
        }
        self.slices = slices(recipe, self.accelerator.process_index, self.accelerator.num_processes)

    # ------------------------------------------------------------------------------- a step

    def step(
        self, stop_requested: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], bool]:
        """One optimiser step; mean loss by task, and whether any process is to stop.

        Raises ``ParityError`` for a loss or gradient that is not finite, before weights change.
        """
        number = self.progress.step
        losses = [self._task(number, task, parts) for task, parts in self._inputs(number)]
        stop = torch.tensor(
            [float(stop_requested())], dtype=widest(self.device), device=self.device
        )
        shared = torch.cat([torch.stack(losses), stop])
        if self.accelerator.num_processes > 1:
            shared = self.accelerator.reduce(shared, "sum")
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        *values, flag = shared.tolist()
        task_losses = {task.name: value for task, value in zip(self.tasks, values, strict=True)}
        for name, value in task_losses.items():
            _refuse_infinite(value, f"step {number + 1}: the loss of task {name!r}")
        limit = self.recipe.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        _refuse_infinite(norm, f"step {number + 1}: the gradient's norm")
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(self.recipe, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.progress.step = number + 1
        return task_losses, flag > 0

    def _inputs(self, step: int) -> StepInputs:
        """Batches and draws of a step; beside a GPU a thread prepares the next one meanwhile."""
        if not self.prefetch:
            return self._prepare(step)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
        number, pending = self._next or (step, self._pool.submit(self._prepare, step))
        wait([pending])  # also of another step: data and orders serve one thread at a time
        inputs = pending.result() if number == step else self._prepare(step)
        self._next = step + 1, self._pool.submit(self._prepare, step + 1)
        return inputs

    def _prepare(self, step: int) -> StepInputs:
        total, times = self.recipe.samples_a_step, len(self.schedule.alphas_cumprod)
        inputs = []
        for task in self.tasks:
            places = self.orders[task.name].indices(step, total)
            drawn = draws(self.recipe.seed, step, task.name, total, self.latent, times)
            parts = [(self.source.batch(task, places[p]), _cut(drawn, p)) for p in self.slices]
            inputs.append((task, parts))
        return inputs

    def close(self) -> None:
        """Stop the thread that prepares the next step."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._next = None

    def _task(self, step: int, task: Task, parts: Sequence[tuple[Batch, Draws]]) -> Tensor:
        """Forward and backward of one task; its part of the mean loss."""
        torch.manual_seed(seed_of(self.recipe.seed, "dropout", step, task.name))
        whole = torch.zeros((), dtype=widest(self.device), device=self.device)
        for batch, drawn in parts:
            loss = self._losses(task, batch, drawn).sum() / self.recipe.samples_a_step
            loss.backward()
            whole += loss.detach()
        return whole

    def _losses(self, task: Task, batch: Batch, drawn: Draws) -> Tensor:
        """The loss of each sample [n]."""
        device = self.device
        noise, timesteps = drawn.noise.to(device), drawn.timesteps.to(device)
        clean = batch.mean.to(device) + batch.std.to(device) * drawn.posterior.to(device)
        schedule: Any = self.schedule
        noisy = schedule.add_noise(clean, noise, timesteps)
        epsilon = schedule.config["prediction_type"] == "epsilon"
        target = noise if epsilon else schedule.get_velocity(clean, noise, timesteps)
        no_prompt, no_image = dropped(task, drawn.dropout, self.recipe.conditioning_dropout_prob)
        channels = without_image(task, batch.channels.to(device), no_image)
        text_embeddings = self.texts.of(batch.prompts, no_prompt.tolist())
        with self._precision():
            prediction = self.unet(
                torch.cat([noisy, channels], 1),
                timesteps,
                text_embeddings["encoder_hidden_states"],
                added_cond_kwargs=self._added(text_embeddings, len(noise)),
                return_dict=False,
                **({"task": task.name} if self.multi else {}),
            )[0]
        losses = F.mse_loss(prediction.float(), target, reduction="none").mean((1, 2, 3))
        if self.recipe.snr_gamma is not None:
            losses = losses * snr_weights(schedule, timesteps, self.recipe.snr_gamma)
        return losses

    def _precision(self) -> Any:
        enabled = self.recipe.mixed_precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _added(
        self, text_embeddings: Mapping[str, Tensor], number: int
    ) -> dict[str, Tensor] | None:
        if not self.texts.xl:
            return None
        sizes = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=torch.float32)
        return {
            "text_embeds": text_embeddings["text_embeds"],
            "time_ids": sizes.expand(number, 6).to(self.device),
        }

    # ----------------------------------------------------------------------- what is written

    def values(self) -> dict[str, Tensor]:
        """The trained weights by name: their averages where there are any."""
        values: Iterable[Tensor] = self.parameters if self.ema is None else self.ema.shadow_params
        return {name: value.detach() for name, value in zip(self.names, values, strict=True)}

    @property
    def state_bytes(self) -> int:
        """Bytes of a state: weights, two moments, averages."""
        copies = 3 if self.ema is None else 4
        return sum(
            copies * parameter.numel() * parameter.element_size() for parameter in self.parameters
        )

    def tensors(self) -> dict[str, Tensor]:
        """What the state holds: ``weight/``, ``ema/``, ``exp_avg/``, ``exp_avg_sq/`` by name."""
        tensors = {}
        for number, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            tensors[f"weight/{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in self.optimizer.state[parameter]:
                    tensors[f"{moment}/{name}"] = self.optimizer.state[parameter][moment]
            if self.ema is not None:
                tensors[f"ema/{name}"] = self.ema.shadow_params[number]
        return tensors

    @torch.no_grad()
    def restore(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state; raises ``CheckpointError`` where it is not of these parameters."""
        self.progress = progress
        moments: dict[int, dict[str, Any]] = {}
        try:
            for number, (name, parameter) in enumerate(
                zip(self.names, self.parameters, strict=True)
            ):
                parameter.copy_(_like(parameter, tensors, f"weight/{name}"))
                if f"exp_avg/{name}" in tensors:
                    moments[number] = {
                        "step": torch.tensor(float(progress.step)),
                        "exp_avg": _like(parameter, tensors, f"exp_avg/{name}").clone(),
                        "exp_avg_sq": _like(parameter, tensors, f"exp_avg_sq/{name}").clone(),
                    }
                if self.ema is not None:
                    self.ema.shadow_params[number].copy_(_like(parameter, tensors, f"ema/{name}"))
        except KeyError as error:
            raise CheckpointError(f"the state is not of this model: it has no {error}") from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.ema is not None:
            self.ema.optimization_step = progress.step


def _like(parameter: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the state; raises ``CheckpointError`` where it is not like the parameter."""
    tensor = tensors[name]
    if (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
        raise CheckpointError(
            f"the state is not of this model: {name} is {tensor.dtype} {list(tensor.shape)}, not "
            f"{parameter.dtype} {list(parameter.shape)}"
        )
    return tensor


def _cut(drawn: Draws, part: slice) -> Draws:
    return Draws(
        posterior=drawn.posterior[part],
        noise=drawn.noise[part],
        timesteps=drawn.timesteps[part],
        dropout=drawn.dropout[part],
    )


def _refuse_infinite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise ParityError(f"{what} is {value}; check the data, or try a lower learning_rate anew")


def seconds() -> float:
    """A clock that only goes forward."""
    return time.monotonic()
