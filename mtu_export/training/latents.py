"""Latents of a whole training set, encoded once into memory-mapped safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, PlanError, Task
from mtu_export.storage import atomic_file
from mtu_export.training.batches import Batch, Live
from mtu_export.training.model import Model, digest
from mtu_export.training.recipe import Recipe
from mtu_export.training.state import as_resource_error, check_disk, refuse_other
from mtu_export.training.watch import Console

SHARD = 1024
"""Samples a shard."""
_CHUNK = 16
"""Pictures that the VAE encodes at a time."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_JSON = "latents.json"


class Cached:
    """Batches out of shards ``<task>/<number>.safetensors``; a step needs no VAE and no picture.

    A shard holds ``mean``, ``std`` [n, C, h, w], ``channels`` [n, Σc, h, w] and the prompts.
    Shards that are there are kept, so filling goes on where it stopped. Raises ``PlanError`` for a
    folder of other latents, ``CheckpointError`` for damaged shards, ``ResourceError`` for the disk.
    """

    def __init__(
        self, live: Live, model: Model, recipe: Recipe, accelerator: Any, shown: Console
    ) -> None:
        self.live, self.dtype = live, _DTYPES[recipe.latents_dtype]
        self.folder = recipe.latents or recipe.state_folder() / "latents"
        self.shards: dict[str, list[tuple[dict[str, Tensor], list[str]]]] = {}
        if accelerator.is_main_process:
            self._check_disk(model)
            for task in model.tasks:
                with as_resource_error(f"the latents in {self.folder}"):
                    self._claim(task, model, recipe)
        accelerator.wait_for_everyone()
        jobs = [
            (task, number)
            for task in model.tasks
            for number in range(-(-len(live.indices[task.name]) // SHARD))
        ]
        jobs_here = jobs[accelerator.process_index :: accelerator.num_processes]
        with shown.progress("latents") as advance:
            for done, (task, number) in enumerate(jobs_here, 1):
                if not self._path(task, number).is_file():
                    self._fill(task, number)
                advance(done, len(jobs_here))
        accelerator.wait_for_everyone()
        for task, number in jobs:
            self.shards.setdefault(task.name, []).append(self._open(task, number))

    def batch(self, task: Task, places: Sequence[int]) -> Batch:
        """The samples at these places of the task's list, in float32."""
        entries = [(self.shards[task.name][place // SHARD], place % SHARD) for place in places]

        def joined(name: str) -> Tensor:
            return torch.stack([shard[0][name][place] for shard, place in entries]).float()

        prompts = [shard[1][place] for shard, place in entries]
        if task.prompt is not None:
            prompts = [task.prompt] * len(prompts)
        return Batch(
            prompts=prompts,
            mean=joined("mean"),
            std=joined("std"),
            channels=joined("channels"),
        )

    def _path(self, task: Task, number: int) -> Path:
        return self.folder / task.name / f"{number:06d}.safetensors"

    def _check_disk(self, model: Model) -> None:
        cells = self.live.latent[0] * self.live.latent[1] * self.dtype.itemsize
        need = 0
        for task in model.tasks:
            width = 2 * self.live.encoder.channels + task.channels
            total = len(self.live.indices[task.name])
            cached = SHARD * len(list((self.folder / task.name).glob("*.safetensors")))
            need += max(0, total - cached) * width * cells
        check_disk(self.folder, need, "the latents")

    def _claim(self, task: Task, model: Model, recipe: Recipe) -> None:
        """Write what the task's latents are of, or refuse latents of something else."""
        vae = model.folder / "vae"
        identity = {
            "data": recipe.data or str(recipe.data_folder or type(self.live.samples).__qualname__),
            "samples": len(self.live.indices[task.name]),
            "fingerprint": getattr(self.live.samples, "fingerprint", None),
            "conditioning": task.to_json()["conditioning"],
            "size": list(self.live.size),
            "dtype": recipe.latents_dtype,
            "vae": digest((vae / "config.json", *checkpoint.weight_files(vae))),
        }
        path = self.folder / task.name / _JSON
        for leftover in path.parent.glob(".*.partial"):
            leftover.unlink()
        if path.is_file():
            refuse_other(checkpoint.read_json(path), identity, path.parent)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if any(path.parent.glob("*.safetensors")):
            raise PlanError(f"{path.parent} has shards without {_JSON}; remove it")
        with atomic_file(path) as private:
            private.write_text(json.dumps(identity, indent=1) + "\n", "utf-8")

    def _fill(self, task: Task, number: int) -> None:
        from safetensors.torch import save_file

        total = len(self.live.indices[task.name])
        places = range(number * SHARD, min((number + 1) * SHARD, total))
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "channels": []}
        prompts: list[str] = []
        for begin in range(0, len(places), _CHUNK):
            batch = self.live.batch(task, places[begin : begin + _CHUNK])
            prompts += batch.prompts
            for name, values in parts.items():
                values.append(getattr(batch, name).to("cpu", self.dtype))
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        path = self._path(task, number)
        with as_resource_error(f"the latents {path}"), atomic_file(path) as private:
            save_file(tensors, private, metadata={"prompts": json.dumps(prompts)})

    def _open(self, task: Task, number: int) -> tuple[dict[str, Tensor], list[str]]:
        from safetensors import SafetensorError, safe_open

        path = self._path(task, number)
        try:
            with safe_open(path, framework="pt") as opened:
                prompts = json.loads(opened.metadata()["prompts"])
                tensors = {name: opened.get_tensor(name) for name in ("mean", "std", "channels")}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, remove it: {error}") from None
        return tensors, prompts
