"""Dense pipelines: a bundle's loop beside diffusers' own pipeline with the same weights.

Ours is ``runner.generate`` on an ONNX fp32 bundle. Theirs is the checkpoint itself in diffusers and
PyTorch: networks in float32 as ever, but latents and the scheduler's states in float64, as it loses
digits in float32 that no table loses. For that the pipeline is given float64 latents, hooks turn
them to float32 before UNet and VAE, and ``step`` runs under a mode that leaves out the schedulers'
own conversions to float32. Noise that a step or the start draws is the same on both sides.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mtu_export import exporter
from mtu_export.bundle import images, runner
from mtu_export.bundle.evaluation import Request
from mtu_export.exporter import options, schedule
from mtu_export.exporter.fed_noise import FedNoise
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import Guidance
from mtu_export.testing import loras
from mtu_export.testing.campaigns.dense_cases import Case
from mtu_export.testing.campaigns.pipelines import (
    LATENT,
    PROMPT,
    Generated,
    Similarity,
    compare,
    image_size,
    mask,
    photo,
)
from mtu_export.testing.dense import write_dense

FLOOR_DB = 110.0
LORA_SCALE = 0.7
TOKEN = "<cat>"
_PARTS = (UNET, "text_encoder", "text_encoder_2")


# ----------------------------------------------------------------------------------------- ours


def export(
    case: Case, folder: Path, out: Path, lora: Sequence[str] = (), embedding: Sequence[str] = ()
) -> runner.Loop:
    """Export a case's task as an ONNX float32 bundle; returns the loop of the bundle."""
    height, width = image_size(folder)
    plan = options.resolve(
        target="onnx",
        model=folder,
        task=case.task,
        scheme="fp32",
        height=height,
        width=width,
        bake_steps=[case.steps],
        bake_strengths=[] if case.strength is None else [case.strength],
        lora=lora,
        embedding=embedding,
        clip_skip=case.clip_skip,
        out=out,
    )
    return runner.open_loop(exporter.export(plan))


def with_table(loop: runner.Loop, case: Case, folder: Path, scratch: Path) -> runner.Loop:
    """The loop with the table that an export with the case's scheduler would have."""
    if not case.table:
        return loop
    path = Path("scheduler") / "scheduler_config.json"
    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
    config = {**json.loads((folder / path).read_text("utf-8")), **case.table}
    (scratch / path).write_text(json.dumps(config), "utf-8")
    table = schedule.table(schedule.load(scratch, None), case.steps, case.strength)
    return replace(loop, schedules={(case.steps, case.strength): table})


def noise(loop: runner.Loop, case: Case) -> np.ndarray:
    """Normal noise [1 + P, 4, h, w]: of the start, then of each pass."""
    passes = len(loop.schedules[case.steps, case.strength].passes)
    return np.random.default_rng(11).standard_normal((1 + passes, 4, *LATENT), np.float32)


def by_us(loop: runner.Loop, case: Case) -> Generated:
    """What the bundle makes."""
    height, width = loop.size
    pictures = {
        "image": images.fit(photo(height, width), width, height),
        "mask": images.fit_mask(mask(height, width), width, height),
    }
    taken = loop.task.inputs.pictures
    draws = loop.schedules[case.steps, case.strength].draws
    request = Request(
        prompt=prompt(case),
        negative_prompt=case.negative,
        noise=noise(loop, case)[: 1 + draws],
        steps=case.steps,
        strength=case.strength,
        pictures={name: value for name, value in pictures.items() if name in taken},
    )
    latents, image = runner.generate(loop, request)
    return Generated(latent=latents[-1], image=np.clip(image, -1, 1))


# --------------------------------------------------------------------------------------- theirs


class _InDouble(TorchFunctionMode):
    """Leaves float64 tensors as they are where a scheduler converts them to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and args[0].dtype == torch.float64:
            wanted = kwargs.get("dtype", next((a for a in args if a is torch.float32), None))
            if wanted == torch.float32:
                return args[0]
        return func(*args, **kwargs)


def _convert(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(new) if value.dtype == old else value
    if isinstance(value, dict):
        return {key: _convert(entry, old, new) for key, entry in value.items()}
    return type(value)(_convert(v, old, new) for v in value) if type(value) is tuple else value


def _keep_double(pipe: Any) -> None:
    """Let a pipeline hold float64 latents between networks in float32."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        return tuple(_convert(a, torch.float64, torch.float32) for a in args), _convert(
            kwargs, torch.float64, torch.float32
        )

    def after(_: Any, _args: Any, output: Any) -> Any:
        return _convert(output, torch.float32, torch.float64)

    pipe.unet.register_forward_pre_hook(before, with_kwargs=True)
    pipe.unet.register_forward_hook(after)
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latent, *args, **kwargs: decode(latent.float(), *args, **kwargs)


def _feed(pipe: Any, draws: np.ndarray) -> None:
    """Give the pipeline's start and each step its noise; both run in float64."""
    remaining: Iterator[torch.Tensor] = iter(torch.from_numpy(draws).double()[:, None])
    first = next(remaining)
    step, name = pipe.scheduler.step, type(pipe.scheduler).__name__

    @functools.wraps(step)
    def fed_step(*args: Any, **kwargs: Any) -> Any:
        with _InDouble(), FedNoise(next(remaining), name):
            return step(*args, **kwargs)

    pipe.scheduler.step = fed_step
    if "Img2Img" not in type(pipe).__name__:
        return
    prepare = type(pipe).prepare_latents

    def prepare_latents(image: Any, timestep: Any, count: int, each: int, *_: Any) -> Any:
        with _InDouble(), FedNoise(first, name):
            return prepare(pipe, image, timestep, count, each, torch.float64, image.device)

    pipe.prepare_latents = lambda image, timestep, count, each, *_, **__: prepare_latents(
        image, timestep, count, each
    )


def open_pipeline(case: Case, folder: Path) -> Any:
    """The checkpoint as diffusers runs it; the VAE's posterior has no width."""
    pipe = getattr(diffusers, case.pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    means = pipe.vae.config.latent_channels
    if case.vae is None:  # a tiny one has no posterior
        with torch.no_grad():
            pipe.vae.quant_conv.weight[means:] = 0
            pipe.vae.quant_conv.bias[means:] = -30
    _keep_double(pipe)
    path = folder / "scheduler" / "scheduler_config.json"
    pipe.stored_scheduler_config = json.loads(path.read_text("utf-8"))
    return pipe


def by_diffusers(pipe: Any, case: Case, guidance: Guidance, draws: np.ndarray) -> Generated:
    """What the pipeline makes of the same noise."""
    if case.table:
        config = {**pipe.stored_scheduler_config, **case.table}  # not the old class's defaults
        kind = getattr(diffusers, config.pop("_class_name"))
        pipe.scheduler = kind.from_config(config)
    _feed(pipe, draws)
    factor = pipe.vae_scale_factor
    height, width = (side * factor for side in LATENT)
    arguments: dict[str, Any] = {"height": height, "width": width}
    if "Pix2Pix" in case.pipeline:
        arguments = {"image": photo(height, width), "image_guidance_scale": guidance.image}
    elif "Inpaint" in case.pipeline:
        arguments |= {"image": photo(height, width), "mask_image": mask(height, width)}
        arguments["strength"] = 1.0
    elif "Img2Img" in case.pipeline:
        arguments = {"image": _latent_of(pipe, height, width), "strength": case.strength}
    if "Img2Img" not in case.pipeline:
        arguments["latents"] = torch.from_numpy(draws[:1]).double()
    if guidance.text is not None:
        arguments["guidance_scale"] = guidance.text
    if case.clip_skip is not None:
        encoder = pipe.text_encoder
        if not hasattr(encoder, "text_model"):  # diffusers asks for it, transformers 5 lacks it
            object.__setattr__(encoder, "text_model", encoder)
        arguments |= {"clip_skip": case.clip_skip, **_skipped_negative(pipe, case)}
    elif case.negative is not None:
        arguments["negative_prompt"] = case.negative
    last: list[np.ndarray] = []

    def keep(_pipe: Any, _step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        last[:] = [state["latents"].double().numpy().copy()]
        return state

    output = pipe(
        prompt(case),
        num_inference_steps=case.steps,
        callback_on_step_end=keep,
        output_type="pt",
        **{**arguments, **case.arguments},
    )
    return Generated(latent=last[0], image=output.images.float().numpy() * 2 - 1)


def _skipped_negative(pipe: Any, case: Case) -> dict[str, Any]:
    """The negative prompt's embeddings by diffusers, as those of a prompt: with the clip skip.

    A bundle's text encoder ends early for all text, diffusers' ``clip_skip`` for the prompt alone.
    """
    if hasattr(pipe, "text_encoder_2") and case.negative is None:
        return {}  # zeros
    with torch.no_grad():
        embeds = pipe.encode_prompt(
            case.negative or "",
            device="cpu",
            num_images_per_prompt=1,
            clip_skip=case.clip_skip,
            do_classifier_free_guidance=False,
        )
    names = ("negative_prompt_embeds", None, "negative_pooled_prompt_embeds", None)
    return {name: value for name, value in zip(names, embeds, strict=False) if name}


def write_embedding(pipe: Any, vectors: int, path: Path) -> Path:
    """Write random vectors of each text encoder and load them in the pipeline as ``<cat>``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
    tensors: dict[str, torch.Tensor] = {}
    for seed, (name, (part, tokens)) in enumerate(pairs.items()):
        encoder = getattr(pipe, part, None)
        if encoder is None:
            continue
        shape = (vectors, encoder.config.hidden_size)
        tensors[name] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        pipe.load_textual_inversion(
            tensors[name], token=TOKEN, text_encoder=encoder, tokenizer=getattr(pipe, tokens)
        )
    if len(tensors) == 1:
        tensors = {TOKEN: tensors["clip_l"]}
    return loras.write(path, tensors)


def prompt(case: Case) -> str:
    """What a case asks for, with its trained token."""
    return PROMPT if not case.vectors else f"{PROMPT} and {TOKEN}"


def _latent_of(pipe: Any, height: int, width: int) -> torch.Tensor:
    """The scaled latent [1, 4, h, w] of the photo: the posterior's mode, as a bundle takes it."""
    with torch.no_grad():
        sample = pipe.image_processor.preprocess(photo(height, width))
        encoded = pipe.vae.encode(sample)
        latent = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        return latent * pipe.vae.config.scaling_factor


def write_lora(pipe: Any, path: Path) -> Path:
    """Write a random LoRA of all layers of the UNet and each text encoder."""
    tensors: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(_PARTS):
        part = getattr(pipe, name, None)
        if part is None:
            continue
        paths = [p for p in loras.layers(part) if "text_projection" not in p]
        matrices = loras.pairs(part, paths, seed=seed)
        small = {p: (down * 0.3, up * 0.3) for p, (down, up) in matrices.items()}
        tensors |= loras.peft(small, component=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return loras.write(path, tensors)


# ----------------------------------------------------------------------------------- comparisons


class Pairs:
    """Both sides of the cases; checkpoints and bundles in one folder, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, Path] = {}
        self._loops: dict[str, runner.Loop] = {}

    def folder(self, case: Case) -> Path:
        """The checkpoint of a case."""
        if case.source not in self._folders:
            self._folders[case.source] = write_dense(
                case.architecture,
                self.root / f"checkpoint-{len(self._folders)}",
                pipeline=case.index or case.pipeline,
                unet=case.unet,
                scheduler=case.scheduler,
                flags=case.flags,
                vae=case.vae,
            )
        return self._folders[case.source]

    def loop(
        self, case: Case, lora: Sequence[str] = (), embedding: Sequence[str] = ()
    ) -> runner.Loop:
        """The bundle of a case, with its table."""
        folder = self.folder(case)
        words = (lora, embedding, case.clip_skip)
        key = repr((case.source, case.task, case.steps, case.strength, words))
        if key not in self._loops:
            out = self.root / f"bundle-{len(self._loops)}"
            self._loops[key] = export(case, folder, out, lora, embedding)
        return with_table(self._loops[key], case, folder, self.root / f"table-{case}")

    def make(self, case: Case) -> tuple[Generated, Generated]:
        """What diffusers makes of a case, and what the bundle does."""
        pipe = open_pipeline(case, self.folder(case))
        adapters: list[str] = []
        if case.lora:
            file = write_lora(pipe, self.root / f"lora-{case}" / "random.safetensors")
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
            pipe.set_adapters(["a"], [LORA_SCALE])
            adapters = [f"{file}:{LORA_SCALE}"]
        embeddings: list[str] = []
        if case.vectors:
            file = self.root / f"embedding-{case}" / "cat.safetensors"
            embeddings = [f"{write_embedding(pipe, case.vectors, file)}:{TOKEN}"]
        loop = self.loop(case, adapters, embeddings)
        guidance = loop.task.scales
        return by_diffusers(pipe, case, guidance, noise(loop, case)), by_us(loop, case)

    def measure(self, case: Case) -> Similarity:
        """Run both sides of a case and compare them."""
        return compare(*self.make(case))
