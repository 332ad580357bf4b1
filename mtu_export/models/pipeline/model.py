"""A Stable Diffusion pipeline as a model: its parts, its flow, its memory, its stock layout.

Families that differ from it in the UNet derive from :class:`PipelineModel`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline import compatibility, deviation, embedding, flow, stock_parts
from mtu_export.models.pipeline import files as pipeline_files
from mtu_export.models.pipeline.anatomy import Anatomy
from mtu_export.models.pipeline.anatomy import costs as count_costs
from mtu_export.models.pipeline.layout import UNET, PipelineLayout, tokenizer_folder
from mtu_export.spec import (
    CheckpointError,
    Embedding,
    KeepFloat,
    LatentSpec,
    LivePart,
    Model,
    PartSpec,
    PlanError,
    StockPipeline,
    Task,
    TextEncoding,
    shown,
)

if TYPE_CHECKING:
    from torch import nn

    from mtu_export.spec.flow import Flow, Inputs
    from mtu_export.spec.model import Deviation

_SCORE_COPIES = 3
"""Copies of the largest attention scores that are alive at a time."""
_KEPT = (
    KeepFloat(pattern=r"conv_in", why="first layer"),
    KeepFloat(pattern=r"conv_out", why="last layer"),
    KeepFloat(pattern=r"(time|add)_embedding\..*", why="time embedding"),
)
_ZEROS = "force_zeros_for_empty_prompt"
_TEXT_LAYERS, _TEXT_WIDTH = 12, 512
"""Defaults of transformers' ``CLIPTextConfig``."""
_SKIPPED = (
    "Clip skip {0}, as diffusers counts: the text encoder gives the states of layer {1} from the "
    "end, for the prompt, the negative prompt and the empty one; diffusers' `clip_skip` leaves the "
    "last two at the usual layer. Programs that open the text encoder are given no clip skip."
)


class PipelineModel:
    """A checkpoint folder with a UNet of this ``config`` (its ``in_channels`` the latent's)."""

    def __init__(
        self,
        family: str,
        folder: Folder,
        config: Mapping[str, Any],
        tasks: tuple[Task, ...],
        default_tasks: tuple[str, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.family, self.folder, self.unet = family, folder, config
        self.tasks, self.default_tasks = tasks, default_tasks
        self.notes = (*notes, *checkpoint.notes(folder))
        self.layout = PipelineLayout.read(folder, config)
        self.unet_folder = UNET if (folder / UNET).is_dir() else "."
        path = folder / "model_index.json"
        self.index = checkpoint.read_json(path) if path.is_file() else {}
        self.clip_skip = 0
        self.embeddings: tuple[Embedding, ...] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The UNet's config, for the manifest."""
        return self.unet

    # ------------------------------------------------------------------------- parts and flow

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """Text encoders, VAE encoder, UNet, VAE decoder."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[PartSpec, ...]:
        layout, vae = self.layout, self.layout.vae or {}
        upcast = vae.get("force_upcast") is True
        encoders = tuple(
            PartSpec(
                name=name,
                kind="text_encoder",
                folder=name,
                stem=checkpoint.TEXT_WEIGHTS,
                optional=checkpoint.POSITION_IDS,
                stock=stock_parts.text_encoder(
                    self.folder,
                    name,
                    is_sdxl=layout.is_sdxl,
                    skip=self.clip_skip,
                    added=sum(len(each.tokens) for each in self.embeddings),
                ),
            )
            for name in layout.text_encoders
        )
        encoder = PartSpec(
            name=flow.ENCODER,
            kind="image_encoder",
            folder="vae",
            prefixes=("encoder.", "quant_conv."),
            integer=False,
            float16="never" if upcast else "gain",
            stock=stock_parts.vae(self.folder),
        )
        decoder = replace(
            encoder,
            name=flow.DECODER,
            kind="image_decoder",
            prefixes=("decoder.", "post_quant_conv."),
        )
        unet = PartSpec(
            name=UNET,
            kind="denoiser",
            folder=self.unet_folder,
            by_task=self.has_task_graphs,
            keep_float=_KEPT,
            upcast_attention=self.unet.get("upcast_attention") is True,
            stock=stock_parts.UNET,
        )
        return (*encoders, encoder, unet, decoder)

    @property
    def has_task_graphs(self) -> bool:
        """Whether the UNet's graph differs between tasks."""
        return True

    def stock_unet(self, task: Task) -> Mapping[str, Any]:
        """The config of the stock UNet that a task's is, once it is exported."""
        return self.unet

    @property
    def latent(self) -> LatentSpec:
        """Channels and pixels per cell."""
        return LatentSpec(channels=self.unet["out_channels"], factor=self.layout.vae_scale_factor)

    @property
    def text(self) -> TextEncoding:
        """The text encoders; SDXL's empty prompt is zeros where the index does not deny it."""
        zeros = self.layout.is_sdxl and self.index.get(_ZEROS, True) is True
        return flow.text_encoding(self.layout, zero_empty=zeros)

    def with_text(self, embeddings: Sequence[str], clip_skip: int) -> Model:
        """This pipeline with added tokens, and hidden states of ``clip_skip`` layers before."""
        configs = {
            name: checkpoint.read_json(self.folder / name / "config.json")
            for name in self.layout.text_encoders
            if (self.folder / name).is_dir()
        }
        for name in self.layout.text_encoders:
            if name not in configs:
                flag = "--embedding" if embeddings else "--clip-skip"
                raise PlanError(f"{flag}: {self.folder} has no {name}/")
        for name, config in configs.items() if clip_skip else ():
            depth = config.get("num_hidden_layers", _TEXT_LAYERS)
            most = depth - 1 - self.layout.is_sdxl if isinstance(depth, int) else 0
            if not 1 <= clip_skip <= most:
                raise PlanError(
                    f"--clip-skip {clip_skip}: {name} has {shown(depth)} layers; legal: "
                    + (f"1 to {most}" if most > 0 else "none")
                )
        widths = {name: config.get("hidden_size", _TEXT_WIDTH) for name, config in configs.items()}
        model = copy.copy(self)
        model.__dict__.pop("_parts", None)  # made for this model
        model.clip_skip = clip_skip
        model.embeddings = tuple(embedding.read(word, widths) for word in embeddings)
        embedding.refuse_repeated(model.embeddings)
        model.notes = (*self.notes, *embedding.notes(model.embeddings))
        if clip_skip:
            model.notes += (_SKIPPED.format(clip_skip, clip_skip + 1 + self.layout.is_sdxl),)
        return model

    def embed(self, part: str, module: nn.Module, ids: Mapping[str, int]) -> None:
        """Set the rows of the added tokens in a text encoder in memory."""
        embedding.embed(module, part, self.embeddings, ids)

    @property
    def guidance_scale(self) -> float | None:
        """The default guidance scale where the UNet takes one as an input."""
        return None

    def flow(self, task: Task) -> Flow:
        """The flow of a task."""
        distilled = self.guidance_scale is not None
        return flow.flow(task, self.layout, self.text, has_guidance_scale=distilled)

    def inputs(self, task: Task) -> Inputs:
        """What a task takes from its user beside the prompt."""
        return flow.inputs(task, guidance_scale=self.guidance_scale)

    def constants(self, task: Task, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """SDXL's sizes: original size, crop and target size, pixels."""
        if not self.layout.is_sdxl:
            return {}
        sizes = np.array([[*size, 0, 0, *size]], np.float32)
        return {f"sizes/{flow.SIZES}": sizes}

    # ------------------------------------------------------------------------------ geometry

    @property
    def size_step(self) -> int:
        """Height and width are multiples of this many pixels."""
        return self.layout.size_step

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the UNet's ``sample_size`` where none is given."""
        return self.layout.image_size(height, width)

    def working_bytes(self, part: str, size: tuple[int, int], batch: int) -> float:
        """The largest attention scores of the UNet, batch x heads x tokens² in float32."""
        if part != UNET:
            return 0.0
        return _SCORE_COPIES * _score_bytes(
            self.unet, [n // self.latent.factor for n in size], batch
        )

    # ----------------------------------------------------------------------------- description

    def anatomy(self) -> Anatomy:
        """The UNet's config and tensors on disk."""
        return Anatomy(config=self.unet, headers=checkpoint.headers(self.folder / self.unet_folder))

    def outline_of(self, channels: int) -> nn.Module:
        """The exported UNet of a number of input channels, on the meta device."""
        raise NotImplementedError

    def describe(self, height: int | None, width: int | None) -> dict[str, Any]:
        """Tasks, parameters and FLOPs at this size in pixels, from JSON and tensor headers."""
        anatomy = self.anatomy()
        size, reason = self._counted_size(height, width)
        parameters = anatomy.parameters()
        costs = {}
        if size is not None:
            latent = size[0] // self.latent.factor, size[1] // self.latent.factor
            costs = count_costs(self.unet, self.tasks, latent, self.outline_of)
        return {
            "checkpoint": str(self.folder),
            "family": self.family,
            "dtypes": anatomy.dtypes,
            "parameters": {**parameters, "total": sum(parameters.values())},
            "parts": [n for n, p in checkpoint.children(self.folder).items() if p.is_dir()],
            "tasks": [_task(task, self.unet["in_channels"]) for task in self.tasks],
            "image": f"{size[0]} x {size[1]}" if size else None,
            "FLOPs": [{"task": name, **asdict(cost)} for name, cost in costs.items()],
            "not counted": reason,
        }

    def _counted_size(
        self, height: int | None, width: int | None
    ) -> tuple[tuple[int, int] | None, str | None]:
        """The size of an export, or None and the reason; one that the user gave is refused."""
        try:
            return self.image_size(height, width), None
        except PlanError as error:
            if height is not None or width is not None:
                raise
            native = self.unet.get("sample_size")
            return None, "give --height and --width" if native is None else str(error)

    def deviation(self, other: Model) -> Deviation:
        """How much the UNets of two pipelines deviate, layer by layer."""
        if not isinstance(other, PipelineModel):
            raise PlanError(f"{other.folder} is no pipeline with a UNet: nothing to compare")
        return deviation.deviation(self.anatomy(), other.anatomy())

    # ------------------------------------------------------------------------------- checks

    def require_complete(self) -> None:
        """Refuse a folder without a part that its ``model_index.json`` names.

        A checkpoint may lack any part but the UNet; one that names it was copied incompletely.
        """
        encoders = self.layout.text_encoders
        needed = {"vae", "scheduler", *encoders, *map(tokenizer_folder, encoders)}
        for name in pipeline_files.absent(self.folder, self.index):
            if name in needed:
                refusal = checkpoint.refusal(self.folder, name)
                raise CheckpointError(
                    refusal
                    or f"{self.folder} has no {name}/, which its model_index.json names; complete "
                    "the copy or download, or name the parts to export with --components"
                )

    def require_compatible(self, parts: Collection[str]) -> None:
        """Refuse parts that do not fit together, by configs and headers."""
        pipeline_files.refuse_refiner(self.folder)
        compatibility.require_compatible_parts(
            self.folder, self.unet, self.layout, self.tasks, parts
        )

    # ------------------------------------------------------------------------------- loading

    def load(self, part: str) -> LivePart:
        """A part in memory."""
        if part == UNET:
            return self.load_unet()
        from mtu_export.models.pipeline import live

        if part in self.layout.text_encoders:
            return live.TextEncoder(
                self.folder, part, is_sdxl=self.layout.is_sdxl, skip=self.clip_skip
            )
        return live.VAE(self.folder, decodes=part == flow.DECODER)

    def load_unet(self) -> LivePart:
        """The UNet in memory."""
        raise NotImplementedError

    def outline(self, part: str, task: Task) -> nn.Module:
        """The module that is exported for a task, on the meta device; of the UNet alone."""
        return self.outline_of(self.unet["in_channels"] + task.channels)

    def unfolded(self) -> Model | None:
        """None: a UNet without a router."""
        return None

    def dense(self, task: Task) -> Model | None:
        """None: it is dense."""
        return None

    def stock_pipeline(self, task: Task) -> StockPipeline | None:
        """The pipeline class of diffusers for a task."""
        kinds = {entry.kind for entry in task.conditioning}
        variant = "InstructPix2Pix" if "image_latent" in kinds else ""
        if kinds >= {"mask", "masked_image_latent"}:
            variant = "Inpaint"
        if task.strength is not None:
            variant = "Img2Img"
        size = "XL" if self.layout.is_sdxl else ""
        flag = self.index.get(_ZEROS)
        path = self.folder / "scheduler" / "scheduler_config.json"
        return StockPipeline(
            scheduler=checkpoint.read_json(path) if path.is_file() else {},
            class_name=f"StableDiffusion{size}{variant}Pipeline",
            configs={UNET: self.stock_unet(task)},
            flags={_ZEROS: flag} if isinstance(flag, bool) and self.layout.is_sdxl else {},
            tokenizers={tokenizer_folder(n): "CLIPTokenizer" for n in self.layout.text_encoders},
        )


def _score_bytes(config: Mapping[str, Any], latent: Sequence[int], batch: int) -> float:
    """Bytes of the largest attention scores, batch x heads x tokens² in float32."""
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    largest = 0.0
    for level, block in enumerate(config.get("down_block_types", ("CrossAttnDownBlock2D",))):
        if "CrossAttn" in str(block):
            tokens = latent[0] * latent[1] / 4**level
            largest = max(largest, batch * _heads_at(heads, level) * tokens**2 * 4)
    return largest


def _heads_at(heads: Any, level: int) -> float:
    """Heads of one level; diffusers' ``attention_head_dim`` is their number."""
    if isinstance(heads, (list, tuple)) and heads:
        heads = heads[min(level, len(heads) - 1)]
    return heads if isinstance(heads, int) and heads > 0 else 1


def _task(task: Task, latent_channels: int) -> dict[str, Any]:
    conditioning = " + ".join(f"{c.kind} ({c.channels})" for c in task.conditioning)
    if task.strength is not None:
        conditioning = "starts from the image"
    scales = {"text": task.guidance.text, "image": task.guidance.image}
    guidance = ", ".join(f"{key} {value:g}" for key, value in scales.items() if value is not None)
    return {
        "task": task.name,
        "channels": latent_channels + task.channels,
        "conditioning": conditioning or "none",
        "guidance": guidance or "none",
        "passes a step": task.guidance.passes,
        "steps": task.steps,
        "prompt": "the user's" if task.prompt is None else repr(task.prompt),
    }
