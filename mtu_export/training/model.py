"""The UNet that is trained: where it comes from, which parameters are, how it is written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from mtu_export import checkpoint
from mtu_export.authoring import upcycle
from mtu_export.graph.tensors import is_finite
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.models.pipeline import files as pipeline_files
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.layout import UNET, PipelineLayout
from mtu_export.models.pipeline.unet import as_checkpoint_error
from mtu_export.spec import (
    CheckpointError,
    MissingWeights,
    PlanError,
    Task,
    Unsupported,
    first_line,
    shown,
)
from mtu_export.spec.catalog import SD_DEFAULT
from mtu_export.storage import atomic_file
from mtu_export.storage.draft import CHECKPOINT, OutputMarker, draft
from mtu_export.training.recipe import Recipe
from mtu_export.training.state import newest, refuse_other

DENSE = OutputMarker(file="unet/config.json", key="_trained_by", value="mtu-export")
"""Identifies a dense pipeline that ``train`` wrote."""
MTU_NAMES = re.compile(
    r"task_embedding\.weight|conv_in\..+|.+\.ff\.(router|experts)\..+|.+\.norm3\.[^.]+\.(weight|bias)"
)
"""What the paper trains: experts, routers, task embeddings, task norms, input convolutions."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
_READ = (".json", ".safetensors", ".txt")
_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained: a folder of parts, the UNet's config as it will be written, the tasks.

    ``multi``: whether the UNet is an MTU checkpoint's, else a dense one.
    """

    folder: Path
    config: Mapping[str, Any]
    tasks: tuple[Task, ...]
    multi: bool

    @property
    def xl(self) -> bool:
        """Whether the UNet takes SDXL's pooled text and sizes."""
        return PipelineLayout(self.config).is_sdxl

    @property
    def marker(self) -> OutputMarker:
        """By which ``--force`` knows an output of this kind."""
        return CHECKPOINT if self.multi else DENSE


def find(recipe: Recipe) -> Model:
    """The model of a recipe from its configs alone; a dense one that is upcycled as it will be.

    Raises ``PlanError``, ``CheckpointError`` and ``UnknownName``.
    """
    folder = checkpoint.locate(recipe.model)
    config = checkpoint.read_json(folder / UNET / "config.json")
    config = unet_config.without_training_keys(config)
    kind = config.get("_class_name")
    if kind != unet_config.CLASS_SUFFIX:
        config = mtu_config.read_config(folder)
        for key, value in (("tasks", recipe.tasks), ("upcycle", recipe.upcycle)):
            if value:
                raise PlanError(f"{folder} is an MTU checkpoint with tasks of its own; drop {key}")
        return Model(folder=folder, config=config, tasks=mtu_config.tasks(config), multi=True)
    unet_config.check_sizes(config)
    config = {**unet_config.STOCK_DEFAULTS, **config}
    if not recipe.tasks:
        raise PlanError(f"{folder} has a dense UNet; name the tasks to train, as tasks = ['t2i']")
    path = folder / "model_index.json"
    index = checkpoint.read_json(path) if path.is_file() else {}
    tasks = presets.tasks_of_source(recipe.tasks, config, index)
    if recipe.upcycle is not None:
        return Model(folder=folder, config=config, tasks=tuple(tasks), multi=True)
    if len(tasks) > 1 or recipe.train != "all":
        raise PlanError(
            "a dense UNet without [upcycle] is trained as it is: one task and train = 'all', got "
            f"{len(tasks)} tasks and train = {recipe.train!r}"
        )
    task = tasks[0]
    latent = config["out_channels"]
    wide = latent + task.channels
    if config["in_channels"] not in (latent, wide):
        raise CheckpointError(
            f"{folder}: the UNet takes {config['in_channels']} channels, task {task.name!r} "
            f"needs {wide}"
        )
    return Model(folder=folder, config={**config, "in_channels": wide}, tasks=(task,), multi=False)


def make(model: Model, recipe: Recipe, state: Path) -> Model:
    """The model with its upcycled checkpoint in the state folder, where it needs one.

    One that was made with other options or other dense weights is replaced, or refused where
    the state folder holds a training state. Raises ``PlanError``.
    """
    if recipe.upcycle is None:
        return model
    out, record = state / "upcycled", state / "upcycled.json"
    options = recipe.upcycle
    identity = {
        "model": str(model.folder.resolve()),
        **digests(model.folder),
        "tasks": [task.to_json() for task in model.tasks],
        "seed": recipe.seed,
        **{f"upcycle.{field.name}": getattr(options, field.name) for field in fields(options)},
    }
    if CHECKPOINT.is_on(out) and newest(state) is not None:
        refuse_other(checkpoint.read_json(record), identity, state)
    elif not (CHECKPOINT.is_on(out) and record.is_file()) or (
        checkpoint.read_json(record) != identity
    ):
        upcycle.upcycle(
            model.folder,
            out,
            tasks=recipe.tasks,
            experts=options.experts,
            rescale=options.rescale,
            sizes=(options.task_embedding_dim, options.router_hidden_dim),
            seed=recipe.seed,
            task_norm=options.task_norm,
            force=True,
        )
        with atomic_file(record) as private:
            private.write_text(json.dumps(identity, indent=1) + "\n", "utf-8")
    config = mtu_config.read_config(out)
    return Model(folder=out, config=config, tasks=mtu_config.tasks(config), multi=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run reads of a model: the UNet's weights, and every file of its parts."""
    unet = digest(checkpoint.weight_files(folder / UNET))
    files = sorted(path for path in folder.rglob("*") if path.suffix in _READ and path.is_file())
    parts = [path for path in files if path.relative_to(folder).parts[0] in _PARTS]
    return {"weights of the model": unet, "parts of the model": digest(parts)}


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of files in this order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def load(model: Model, train: str) -> tuple[nn.Module, list[str]]:
    """The UNet in float32, and the names of the parameters that are trained.

    Frozen ones stay mapped from disk. Raises ``CheckpointError`` and ``MissingWeights``.
    """
    if model.multi:
        unet: nn.Module = mtu.load(model.folder)
    else:
        unet = _dense(model)
    names = trained(unet, train)
    chosen = set(names)
    for name, parameter in unet.named_parameters():
        if name in chosen:
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
    return unet.train(), names


def trained(unet: nn.Module, train: str) -> list[str]:
    """Names of the parameters that ``train`` ("mtu" or "all") stands for."""
    names = [name for name, _ in unet.named_parameters()]
    return [name for name in names if train == "all" or MTU_NAMES.fullmatch(name)]


def _dense(model: Model) -> nn.Module:
    headers = checkpoint.headers(model.folder / UNET)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    for key in config:
        if key not in mtu.STOCK_KEYS:
            raise CheckpointError(f"{model.folder / UNET / 'config.json'}: unknown key {key!r}")
    with as_checkpoint_error(), torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    conv = "conv_in.weight"
    stored = headers[conv].shape if conv in headers else None
    first, _, *kernel = shapes[conv]
    narrow = (first, config["out_channels"], *kernel)
    checkpoint.compare(headers, {**shapes, conv: narrow} if stored == narrow else shapes)
    state = {}
    for name in shapes:
        value = checkpoint.tensor(headers, name).to(torch.float32)
        if not is_finite(value):
            raise MissingWeights(f"tensor {name!r} holds NaN or Inf")
        if name == conv and stored == narrow:
            wide = torch.zeros(shapes[name])
            wide[:, : value.shape[1]] = value
            value = wide
        state[name] = value
    unet.load_state_dict(state, strict=True, assign=True)
    return unet.requires_grad_(False)


def noise_schedule(folder: Path) -> DDPMScheduler:
    """Betas and prediction type of the checkpoint's scheduler, as a DDPM for training.

    Raises ``Unsupported`` for predictions other than epsilon and v.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = checkpoint.read_json(path) if path.is_file() else SD_DEFAULT
    prediction = config.get("prediction_type", "epsilon")
    flow = "FlowMatch" in str(config.get("_class_name")) or config.get("use_flow_sigmas")
    if flow or prediction not in _PREDICTIONS:
        reason = "flow matching" if flow else f"prediction_type {shown(prediction)}"
        raise Unsupported(f"{path}: {reason} cannot be trained; legal: {' or '.join(_PREDICTIONS)}")
    kept = {key: config[key] for key in _NOISE if config.get(key) is not None}
    try:
        return DDPMScheduler(**kept)
    except Exception as error:  # whatever diffusers makes of a damaged config
        raise CheckpointError(
            f"{path} does not describe a noise schedule: {first_line(error)}"
        ) from None


def write(
    model: Model,
    unet: nn.Module,
    values: Mapping[str, Tensor],
    out: Path,
    *,
    dtype: str,
    force: bool,
) -> None:
    """Write the checkpoint (or dense pipeline): ``values`` over the UNet's weights, parts copied.

    Raises ``OutputExists``, ``PlanError``, ``ResourceError``.
    """
    state = unet.state_dict()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, value in state.items():
            yield name, values.get(name, value).detach().to("cpu", _DTYPES[dtype])

    source = model.folder
    whole = (source / "model_index.json").is_file()
    index = pipeline_files.read(source) if whole else {}
    with draft(out, force=force, marker=model.marker, sources=[source]) as folder:
        config = dict(model.config)
        if not model.multi:
            stock = mtu_config.stock_config(config, config["in_channels"])
            config = {**stock, DENSE.key: DENSE.value}
        checkpoint.write(folder / UNET, config, tensors())
        if whole:
            pipeline_files.copy(source, folder, index)
        if model.multi:
            pipeline_files.write_index(folder, index)
        elif whole:
            document = checkpoint.read_json(source / "model_index.json")
            changed = {**document, UNET: ["diffusers", unet_config.CLASS_SUFFIX]}
            kept = {
                k: v for k, v in changed.items() if k.startswith("_") or k in index or k == UNET
            }
            (folder / "model_index.json").write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
