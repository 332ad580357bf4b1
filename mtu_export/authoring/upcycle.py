"""Dense diffusers UNet -> MTU checkpoint, tensor by tensor.

Experts are the shards of the dense feed-forward, as in the paper. By default they keep its
weights as they are (checkpoint format 1: expert i takes rows i·hs..(i+1)·hs); behind a neutral
router, w = 1/N, such a feed-forward starts at 1/N of the dense one. The paper says nothing of a
correction, so none is the default: results stay comparable with the published ones. With
``rescale`` the value rows are multiplied by N, and the upcycled model starts equal to the dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.mtu import config as format1
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.models.pipeline import files as pipeline_files
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import CheckpointError, PlanError, Task, UnknownName
from mtu_export.storage.draft import CHECKPOINT, draft
from mtu_export.testing import random_parts
from mtu_export.testing.architectures import ARCHITECTURES, PUBLISHED, STOCK_PARTS
from mtu_export.testing.random_parts import random_tensor

_TINY_ROUTER = 32
PAPER_ROUTER = 768
"""d_task and router width by which SD 1.5 has the published 869 M parameters."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def mtu_config(
    stock: Mapping[str, Any],
    tasks: Sequence[Task],
    experts: int,
    sizes: tuple[int, int],
    task_norm: str,
) -> dict[str, Any]:
    """``unet/config.json`` of format 1: the noisy latent alone counts as ``in_channels``."""
    kept = {k: v for k, v in stock.items() if not k.startswith("_")}
    return {
        **kept,
        "in_channels": stock.get("out_channels", 4),
        "_class_name": "MTUUNet2DConditionModel",
        "mtu_format": format1.FORMAT,
        "num_experts": experts,
        "task_embedding_dim": sizes[0],
        "router_hidden_dim": sizes[1],
        "tasks": [task.to_json() for task in tasks],
        "task_norm": task_norm,
    }


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint with this config."""
    with mtu.as_checkpoint_error(), torch.device("meta"):
        model = mtu.MTUUNet2DConditionModel.from_config(dict(config))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# -------------------------------------------------------------------------------------- random


def write_random(
    architecture: str,
    out: Path,
    *,
    tasks: Sequence[str],
    experts: int = 4,
    seed: int = 0,
    dtype: str = "fp32",
    task_norm: str = "replace",
    force: bool = False,
) -> None:
    """A pipeline with seeded random weights at the size of ``architecture``."""
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, list(ARCHITECTURES))
    if dtype not in _DTYPES:
        raise UnknownName("dtype", dtype, list(_DTYPES))
    stock = ARCHITECTURES[architecture]
    size = PAPER_ROUTER if architecture in PUBLISHED else _TINY_ROUTER
    config = mtu_config(
        stock, presets.resolve_tasks(tasks, stock), experts, (size, size), task_norm
    )
    with draft(out, force=force, marker=CHECKPOINT) as folder:
        shapes = tensor_shapes(config)
        tensors = ((n, random_tensor(n, s, seed).to(_DTYPES[dtype])) for n, s in shapes.items())
        checkpoint.write(folder / UNET, config, tensors)
        pipeline_files.write_index(
            folder,
            random_parts.write(STOCK_PARTS[architecture], folder, seed, _DTYPES[dtype]),
        )


# --------------------------------------------------------------------------------- from a source


def upcycle(
    source: Folder,
    out: Path,
    *,
    tasks: Sequence[str],
    experts: int = 4,
    rescale: bool = False,
    sizes: tuple[int, int] = (PAPER_ROUTER, PAPER_ROUTER),
    seed: int = 0,
    task_norm: str = "replace",
    source_keys: Mapping[str, str] | None = None,
    force: bool = False,
) -> list[str]:
    """Upcycle a dense UNet folder or pipeline folder to a checkpoint.

    Routers start neutral (w = 1/N); task norms and input convolutions start as the dense ones,
    with zeros for channels that the source does not have. ``sizes`` is d_task and the router's
    width, ``source_keys`` say in the config which repository the source is. Other parts of a
    pipeline are copied. Returns what the user should know of the
    conditioning, line by line. Raises ``CheckpointError`` and ``PlanError``.
    """
    pipeline_files.refuse_refiner(source)
    unet_folder = source / UNET if (source / UNET).is_dir() else source
    stock = unet_config.without_training_keys(checkpoint.read_json(unet_folder / "config.json"))
    name = stock.get("_class_name")
    if name != unet_config.CLASS_SUFFIX:
        raise CheckpointError(
            f"{unet_folder}: upcycling takes a UNet2DConditionModel, this is {name!r}"
        )
    for key in stock:
        if not key.startswith("_") and key not in mtu.STOCK_KEYS:
            raise CheckpointError(f"{unet_folder / 'config.json'}: unknown key {key!r}")
    original = _model_index(source)
    resolved = presets.tasks_of_source(tasks, stock, original)
    config = mtu_config(stock, resolved, experts, sizes, task_norm)
    config |= {format1.RESCALE: experts if rescale else 1, **(source_keys or {})}
    headers = checkpoint.headers(unet_folder)
    _compare_source(stock, headers)
    if any(path.resolve() in out.resolve().parents for path in checkpoint.sources(source)):
        raise PlanError(f"output {str(out)!r} lies inside the source {str(source)!r}")
    index = pipeline_files.read(source) if unet_folder != source else {}
    with draft(
        out, force=force, marker=CHECKPOINT, sources=[*checkpoint.sources(source)]
    ) as folder:
        tensors = _tensors(
            tensor_shapes(config), headers, experts if rescale else 1, seed, task_norm
        )
        checkpoint.write(folder / UNET, config, tensors)
        pipeline_files.copy(source, folder, index)
        pipeline_files.write_index(folder, index)
    return conditioning_notes(stock, resolved, presets.resolve_tasks(tasks, stock), original)


def _model_index(source: Folder) -> dict[str, Any]:
    path = source / "model_index.json"
    return checkpoint.read_json(path) if path.is_file() else {}


def conditioning_notes(
    stock: Mapping[str, Any],
    tasks: Sequence[Task],
    as_named: Sequence[Task],
    index: Mapping[str, Any],
) -> list[str]:
    """What a source's input channels mean for its tasks, as one line of text for each matter.

    Channels of the source that a task drops are named, with the presets that take them all; so is
    a task that takes unscaled image latents, unlike the preset ``as_named``.
    """
    latent, channels = stock.get("out_channels", 4), stock.get("in_channels", 4)
    dropping = [task.name for task in tasks if latent < channels != latent + task.channels]
    notes = []
    if dropping:
        fitting = presets.presets_of_width(channels, latent)
        better = f"--task {' or '.join(fitting)} takes" if fitting else "a task of that width takes"
        notes.append(
            f"the source has {channels} input channels; {', '.join(dropping)} "
            f"drop{'s' * (len(dropping) == 1)} its last {channels - latent}: {better} all"
        )
    unscaled = [task.name for task, named in zip(tasks, as_named, strict=True) if task != named]
    if unscaled:
        notes.append(
            f"{', '.join(unscaled)}: image latents are not scaled, as in {index['_class_name']}"
        )
    return notes


def _compare_source(stock: Mapping[str, Any], headers: Mapping[str, checkpoint.Header]) -> None:
    unet_config.check_sizes(stock)
    with mtu.as_checkpoint_error(), torch.device("meta"):
        model = mtu.UNet2DConditionModel.from_config(dict(stock))
    assert isinstance(model, torch.nn.Module)
    checkpoint.compare(headers, {k: tuple(v.shape) for k, v in model.state_dict().items()})


def _tensors(
    shapes: Mapping[str, tuple[int, ...]],
    headers: Mapping[str, checkpoint.Header],
    scale: int,
    seed: int,
    task_norm: str,
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        if name in headers:
            yield name, checkpoint.tensor(headers, name)
        elif name == "task_embedding.weight" or ".ff.router.fc1." in name:
            zero = name.endswith("bias")
            yield name, torch.zeros(shape) if zero else random_tensor(name, shape, seed)
        elif ".ff.router.fc2." in name:
            yield name, torch.zeros(shape)
        elif name.startswith("conv_in."):
            yield name, _conv_in(name, shape, headers)
        elif ".norm3." in name:
            yield name, _norm(name, shape, headers, task_norm)
        else:
            yield name, _expert(name, shapes, headers, scale)


def _conv_in(name: str, shape: tuple[int, ...], headers: Mapping[str, checkpoint.Header]) -> Tensor:
    """The dense convolution; a task with more channels starts with zeros for them.

    A source that is itself wider (inpainting: 9) gives all channels to a task of its width and
    those of the noisy latent to the others.
    """
    if name.endswith("bias"):
        return checkpoint.tensor(headers, "conv_in.bias")
    stock = checkpoint.tensor(headers, "conv_in.weight")
    if stock.shape[1] == shape[1]:
        return stock
    latent = min(stock.shape[1], headers["conv_out.weight"].shape[0])
    wide = torch.zeros(shape, dtype=stock.dtype)
    wide[:, :latent] = stock[:, :latent]
    return wide


def _norm(
    name: str,
    shape: tuple[int, ...],
    headers: Mapping[str, checkpoint.Header],
    task_norm: str,
) -> Tensor:
    """The stock norm3 where it is replaced; the identity where the task norm follows it."""
    path, leaf = name.split(".norm3.")[0], name.rpartition(".")[2]
    if task_norm == "replace":
        return checkpoint.tensor(headers, f"{path}.norm3.{leaf}")
    return torch.ones(shape) if leaf == "weight" else torch.zeros(shape)


def _expert(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    headers: Mapping[str, checkpoint.Header],
    scale: int,
) -> Tensor:
    """The expert's slice of the dense feed-forward, in order; value rows times ``scale``."""
    path, _, rest = name.partition(".ff.experts.")
    number, layer, leaf = rest.split(".")
    widths = [shapes[f"{path}.ff.experts.{i}.out.weight"][1] for i in range(int(number) + 1)]
    part = slice(sum(widths[:-1]), sum(widths))
    if layer == "out":
        dense = checkpoint.tensor(headers, f"{path}.ff.net.2.{leaf}")
        return dense if leaf == "bias" else dense[:, part]
    dense = checkpoint.tensor(headers, f"{path}.ff.net.0.proj.{leaf}")
    value, gate = dense.chunk(2)
    return torch.cat([value[part] * scale, gate[part]])
