"""Compare a bundle's loop with diffusers' pipelines: same weights, noise and schedule, float32.

Our side is ``runner.generate`` on an ONNX bundle in ONNX Runtime. Their side is a diffusers
pipeline in PyTorch with the folded UNet, which tokenizes, encodes, guides, steps and decodes by
itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from mtu_export import exporter
from mtu_export.authoring import upcycle
from mtu_export.bundle import images, runner
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options, schedule
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import Guidance

STEPS = 20
LATENT = (8, 16)
"""Height and width of a latent; unequal, so that swapped axes show."""
PROMPT = "a photo of a red circle on a blue table"
FLOOR_DB = 60.0
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Names of ``--scheduler`` -> class and settings of the same scheduler in diffusers."""
TASKS: Mapping[str, Mapping[str, Any]] = {
    "edit": {
        "conditioning": [{"kind": "image_latent", "channels": 4, "scaled": False}],
        "guidance": {"kind": "text_image", "text": 7.5, "image": 1.6},
        "prompt": None,
    },
    "inpaint": {
        "conditioning": [{"kind": "image_latent", "channels": 4, "scaled": False}],
        "guidance": {"kind": "text_image", "text": 4.0, "image": 1.5},
        "prompt": None,
    },
    "sr": {
        "conditioning": [{"kind": "image_latent", "channels": 4, "scaled": False}],
        "guidance": {"kind": "none"},
        "prompt": "",
    },
}
"""Presets with an unscaled image latent, as InstructPix2Pix has it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: a task of the tiny checkpoint, its pipeline, scheduler and prediction type.

    ``task`` is a name in the checkpoint, ``pipeline`` a class of diffusers, and ``zeros`` SDXL's
    ``force_zeros_for_empty_prompt``.
    """

    task: str
    pipeline: str
    scheduler: str = "pndm"
    prediction: str = "epsilon"
    zeros: bool = True

    def __str__(self) -> str:
        name = f"{self.task}-{self.pipeline}-{self.scheduler}-{self.prediction}"
        return name if self.zeros else f"{name}-encoded"


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """PSNR in dB of our last latent and our image against theirs."""

    latents_db: float
    image_db: float


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One side's last latent [1, C, h, w] and image [1, 3, H, W] within −1..1."""

    latent: np.ndarray
    image: np.ndarray


_SD, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_EDIT, _FILL = "StableDiffusionInstructPix2PixPipeline", "StableDiffusionInpaintPipeline"
CASES = (
    *(Case(task="t2i", pipeline=_SD, scheduler=name) for name in SCHEDULERS),
    *(
        Case(task="t2i", pipeline=_SD, scheduler=name, prediction="v_prediction")
        for name in ("ddim", "dpm++2m")
    ),
    *(Case(task="t2i", pipeline=_XL, scheduler=name) for name in SCHEDULERS),
    Case(task="t2i", pipeline=_XL, scheduler="euler", zeros=False),
    *(Case(task="edit", pipeline=_EDIT, scheduler=name) for name in SCHEDULERS),
    *(Case(task="inpaint", pipeline=_EDIT, scheduler=name) for name in ("pndm", "euler")),
    Case(task="sr", pipeline=_EDIT),
    Case(task="edit-scaled", pipeline=_EDIT, scheduler="ddim"),
    *(Case(task="fill", pipeline=_FILL, scheduler=name) for name in SCHEDULERS),
    Case(task="fill", pipeline="StableDiffusionXLInpaintPipeline", scheduler="euler"),
)


# --------------------------------------------------------------------------------------- inputs


def checkpoint(architecture: str, folder: Path) -> Path:
    """Write a random checkpoint with every task of ``CASES`` into ``folder``; returns its path."""
    folder.mkdir(parents=True)
    scaled = {**TASKS["edit"], "conditioning": [{"kind": "image_latent", "channels": 4}]}
    files = []
    for name, preset in {**TASKS, "edit-scaled": scaled}.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps({"name": name, "steps": STEPS, **preset}), "utf-8")
    out = folder / architecture
    upcycle.write_random(architecture, out, tasks=["t2i", "fill", *map(str, files)])
    return out


def without_zeros(folder: Path, out: Path) -> Path:
    """Copy an SDXL checkpoint to ``out``, where its index has the empty prompt encoded."""
    shutil.copytree(folder, out)
    index = json.loads((out / "model_index.json").read_text("utf-8"))
    index["force_zeros_for_empty_prompt"] = False
    (out / "model_index.json").write_text(json.dumps(index), "utf-8")
    return out


def photo(height: int, width: int) -> Image.Image:
    """An image of smooth colours with some grain."""
    rows, columns = np.mgrid[0:height, 0:width] / width
    grain = np.random.default_rng(5).normal(0, 0.05, (height, width, 3))
    waves = np.stack([np.sin(9 * rows + k * columns) for k in (2, 5, 7)], -1) / 2 + 0.5
    return Image.fromarray((np.clip(waves + grain, 0, 1) * 255).astype(np.uint8))


def mask(height: int, width: int) -> Image.Image:
    """Grey values that rise from left to right; pixels from 128 on are repainted."""
    ramp = np.tile(np.linspace(0, 255, width), (height, 1))
    ramp[: height // 3] = 0
    return Image.fromarray(ramp.astype(np.uint8))


def noise() -> np.ndarray:
    """Normal noise [1, 4, h, w]."""
    return np.random.default_rng(11).standard_normal((1, 4, *LATENT), np.float32)


def image_size(folder: Path) -> tuple[int, int]:
    """Height and width in pixels of an image whose latent has the size ``LATENT``."""
    config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    levels = config.get("block_out_channels") or config["decoder_block_out_channels"]
    factor = 2 ** (len(levels) - 1)
    return LATENT[0] * factor, LATENT[1] * factor


# ----------------------------------------------------------------------------------------- ours


def export(
    folder: Path, task: str, out: Path, *, batch: int = 1, lora: Sequence[str] = ()
) -> runner.Loop:
    """Export ``task`` as an ONNX float32 bundle to ``out``; returns the loop of the bundle."""
    height, width = image_size(folder)
    plan = options.resolve(
        target="onnx",
        model=folder,
        task=task,
        scheme="fp32",
        height=height,
        width=width,
        batch=batch,
        bake_steps=[STEPS],
        lora=lora,
        out=out,
    )
    return runner.open_loop(exporter.export(plan))


def with_table(loop: runner.Loop, case: Case, folder: Path, scratch: Path) -> runner.Loop:
    """The loop with the schedule that an export with the case's scheduler would have.

    For the checkpoint's own scheduler the loop is returned as it is.
    """
    path = Path("scheduler") / "scheduler_config.json"
    config = json.loads((folder / path).read_text("utf-8"))
    exported = (config["_class_name"], config.get("prediction_type", "epsilon"))
    if exported == (SCHEDULERS[case.scheduler][0], case.prediction):
        return loop
    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
    config["prediction_type"] = case.prediction
    (scratch / path).write_text(json.dumps(config), "utf-8")
    schedules = schedule.tables(schedule.load(scratch, case.scheduler), [STEPS])
    return replace(loop, schedules={(steps, None): table for steps, table in schedules.items()})


def by_us(loop: runner.Loop, prompt: str = PROMPT, guidance: Guidance | None = None) -> Generated:
    """What a bundle generates for a prompt; ``guidance`` replaces the task's scales."""
    height, width = loop.size
    pictures = {
        "image": images.fit(photo(height, width), width, height),
        "mask": images.fit_mask(mask(height, width), width, height),
    }
    taken = loop.task.inputs.pictures
    request = Request(
        prompt=prompt,
        noise=noise(),
        steps=STEPS,
        pictures={name: value for name, value in pictures.items() if name in taken},
        guidance=guidance,
    )
    latents, image = runner.generate(loop, request)
    return Generated(latent=latents[-1], image=np.clip(image, -1, 1))


# --------------------------------------------------------------------------------------- theirs


def stock(folder: Path, task: str, kind: str, out: Path) -> Any:
    """The checkpoint at ``folder`` as a diffusers pipeline, with its UNet folded for ``task``."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(UNET))
    exporter.save_folded(
        options.resolve(target="diffusers", model=folder, task=task, scheme="fp32", out=out / UNET)
    )
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": kind, UNET: ["diffusers", "UNet2DConditionModel"]}
    index["_diffusers_version"] = diffusers.__version__
    if "XL" not in kind:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (out / "model_index.json").write_text(json.dumps(index), "utf-8")
    pipe = getattr(diffusers, kind).from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    pipe.stored_image_size = image_size(folder)
    pipe.stored_scheduler_config = dict(pipe.scheduler.config)
    if "Inpaint" in kind:
        _without_variance(pipe.vae)
    return pipe


def _without_variance(vae: Any) -> None:
    """Remove the posterior's variance, so that a pipeline that samples from it gets its mode.

    The channels of the mean, the only ones in a bundle, stay.
    """
    means = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[means:] = 0
        vae.quant_conv.bias[means:] = -30  # the lowest log variance that diffusers allows


def by_diffusers(pipe: Any, case: Case, guidance: Guidance) -> Generated:
    """What a diffusers pipeline generates for ``PROMPT``, guided as our task is."""
    unguided = 1.0  # the scale at which diffusers does not guide
    name, settings = SCHEDULERS[case.scheduler]
    config = pipe.stored_scheduler_config  # pipe.scheduler may be the last case's
    pipe.scheduler = getattr(diffusers, name).from_config(
        config, prediction_type=case.prediction, **settings
    )
    height, width = pipe.stored_image_size
    arguments: dict[str, Any] = {"height": height, "width": width}
    if "Pix2Pix" in case.pipeline:
        image: Any = photo(height, width) if case.task != "edit-scaled" else _scaled_latent(pipe)
        arguments = {"image": image, "image_guidance_scale": guidance.image or unguided}
    elif "Inpaint" in case.pipeline:
        arguments |= {"image": photo(height, width), "mask_image": mask(height, width)}
        arguments["strength"] = 1.0
    last: list[np.ndarray] = []

    def keep(_pipe: Any, _step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        last[:] = [state["latents"].numpy().copy()]
        return state

    output = pipe(
        "" if case.task == "sr" else PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=guidance.text or unguided,
        latents=torch.from_numpy(noise()),
        callback_on_step_end=keep,
        output_type="pt",
        **arguments,
    )
    return Generated(latent=last[0], image=output.images.numpy() * 2 - 1)


def _scaled_latent(pipe: Any) -> torch.Tensor:
    """The image latent [1, 4, h, w], scaled as in all pipelines but InstructPix2Pix."""
    with torch.no_grad():
        sample = pipe.image_processor.preprocess(photo(*pipe.stored_image_size))
        return pipe.vae.encode(sample).latent_dist.mode() * pipe.vae.config.scaling_factor


# ----------------------------------------------------------------------------------- comparisons


def compare(theirs: Generated, ours: Generated) -> Similarity:
    """How close our result is to theirs."""
    return Similarity(
        latents_db=psnr(theirs.latent, ours.latent), image_db=psnr(theirs.image, ours.image)
    )


class Pairs:
    """Both sides of the cases: checkpoints, bundles and pipelines in one folder, each built once.

    ``architecture`` is that of the SD checkpoints; the SDXL checkpoint is ``tiny-sdxl``.
    """

    def __init__(self, root: Path, architecture: str = "tiny") -> None:
        self.root, self.architecture = root, architecture
        self._cache: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    def folder(self, case: Case) -> Path:
        """The checkpoint of a case."""
        kind = "tiny-sdxl" if "XL" in case.pipeline else self.architecture
        folder = self._once(kind, lambda: checkpoint(kind, self.root / kind))
        if case.zeros:
            return folder
        name = f"{kind}-encoded"
        return self._once(name, lambda: without_zeros(folder, self.root / name))

    def loop(self, case: Case) -> runner.Loop:
        """Our side of a case."""
        folder = self.folder(case)
        name = f"bundle-{folder.name}-{case.task}"
        loop = self._once(name, lambda: export(folder, case.task, self.root / name))
        return with_table(loop, case, folder, self.root / f"scheduler-{folder.name}-{case}")

    def pipe(self, case: Case) -> Any:
        """Their side of a case."""
        folder = self.folder(case)
        name = f"{case.pipeline}-{folder.name}-{case.task}"
        return self._once(name, lambda: stock(folder, case.task, case.pipeline, self.root / name))

    def make(self, case: Case) -> tuple[Generated, Generated]:
        """What diffusers generates for a case, and what the bundle does."""
        loop = self.loop(case)
        return by_diffusers(self.pipe(case), case, loop.task.scales), by_us(loop)

    def measure(self, case: Case) -> Similarity:
        """Run both sides of a case and compare them."""
        return compare(*self.make(case))
