"""A bundle's loop beside the pipelines of diffusers: same weights, noise and schedule, float32.

Ours is ``runner.generate`` on an ONNX bundle in ONNX Runtime; theirs is a pipeline of diffusers
in PyTorch with the folded UNet, which tokenizes, encodes, guides, steps and decodes by itself.
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
from mtu_export.bundle import denoising, images, runner
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options, schedule
from mtu_export.spec import Guidance

STEPS = 20
LATENT = (8, 16)
"""Height and width of a latent; unequal, so that swapped sides show."""
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
"""Names of ``--scheduler`` -> how a user of diffusers makes the same one."""
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
"""Presets with the image latent as InstructPix2Pix has it: not scaled."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: a task of the tiny checkpoint, its pipeline, scheduler and prediction type.

    ``task`` is a name in the checkpoint; ``pipeline`` a class of diffusers; ``zeros`` is SDXL's
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
class Likeness:
    """PSNR in dB of ours against theirs: last latent, picture."""

    latents_db: float
    image_db: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """A picture: the last latent [1, C, h, w], and the image [1, 3, H, W] within −1..1."""

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
    """A random whole checkpoint at ``folder`` with every task of ``CASES``."""
    folder.mkdir(parents=True)
    scaled = {**TASKS["edit"], "conditioning": [{"kind": "image_latent", "channels": 4}]}
    files = []
    for name, row in {**TASKS, "edit-scaled": scaled}.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps({"name": name, "steps": STEPS, **row}), "utf-8")
    out = folder / architecture
    upcycle.write_random(architecture, out, tasks=["t2i", "fill", *map(str, files)])
    return out


def without_zeros(whole: Path, out: Path) -> Path:
    """A copy of a checkpoint of SDXL whose index wants the empty prompt encoded."""
    shutil.copytree(whole, out)
    index = json.loads((out / "model_index.json").read_text("utf-8"))
    index["force_zeros_for_empty_prompt"] = False
    (out / "model_index.json").write_text(json.dumps(index), "utf-8")
    return out


def photo(height: int, width: int) -> Image.Image:
    """A picture of smooth colours with some grain."""
    rows, columns = np.mgrid[0:height, 0:width] / width
    grain = np.random.default_rng(5).normal(0, 0.05, (height, width, 3))
    waves = np.stack([np.sin(9 * rows + k * columns) for k in (2, 5, 7)], -1) / 2 + 0.5
    return Image.fromarray((np.clip(waves + grain, 0, 1) * 255).astype(np.uint8))


def mask(height: int, width: int) -> Image.Image:
    """Grey values that rise from left to right: those from 128 on are repainted."""
    ramp = np.tile(np.linspace(0, 255, width), (height, 1))
    ramp[: height // 3] = 0
    return Image.fromarray(ramp.astype(np.uint8))


def noise() -> np.ndarray:
    """Normal noise [1, 4, h, w]."""
    return np.random.default_rng(11).standard_normal((1, 4, *LATENT), np.float32)


def image_size(folder: Path) -> tuple[int, int]:
    """Height and width in pixels of a picture whose latent is of the size ``LATENT``."""
    config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return LATENT[0] * factor, LATENT[1] * factor


# ----------------------------------------------------------------------------------------- ours


def export(
    folder: Path, task: str, out: Path, *, batch: int = 1, lora: Sequence[str] = ()
) -> runner.Loop:
    """The loop of an ONNX float32 bundle of ``task``, made at ``out``."""
    height, width = image_size(folder)
    row = options.resolve(
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
    return runner.open_loop(exporter.export(row))


def with_table(loop: runner.Loop, case: Case, folder: Path, scratch: Path) -> runner.Loop:
    """The loop with the table that an export with the case's scheduler would have.

    The checkpoint's own needs no change: its table is the one in the bundle.
    """
    path = Path("scheduler") / "scheduler_config.json"
    config = json.loads((folder / path).read_text("utf-8"))
    own = (config["_class_name"], config.get("prediction_type", "epsilon"))
    if own == (SCHEDULERS[case.scheduler][0], case.prediction):
        return loop
    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
    config["prediction_type"] = case.prediction
    (scratch / path).write_text(json.dumps(config), "utf-8")
    found = schedule.tables(schedule.load(scratch, case.scheduler), [STEPS])
    return replace(loop, schedules=found)


def by_us(loop: runner.Loop, prompt: str = PROMPT) -> Made:
    """The picture of a prompt by a bundle."""
    height, width = loop.size
    request = denoising.Request(
        prompt=prompt,
        noise=noise(),
        steps=STEPS,
        image=images.fit(photo(height, width), width, height),
        mask=images.fit_mask(mask(height, width), width, height),
    )
    latents, image = runner.generate(loop, request)
    return Made(latent=latents[-1], image=np.clip(image, -1, 1))


# --------------------------------------------------------------------------------------- theirs


def stock(folder: Path, task: str, kind: str, out: Path) -> Any:
    """The checkpoint at ``folder`` as a pipeline of diffusers, the UNet folded for ``task``."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("unet"))
    exporter.save_folded(
        options.resolve(
            target="diffusers", model=folder, task=task, scheme="fp32", out=out / "unet"
        )
    )
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": kind, "unet": ["diffusers", "UNet2DConditionModel"]}
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
    """Let the posterior have no width, so that a pipeline that samples it gets its mode.

    The rows of the means, which are all that a bundle has, stay.
    """
    rows = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[rows:] = 0
        vae.quant_conv.bias[rows:] = -30  # the least log variance that diffusers lets pass


def by_diffusers(pipe: Any, case: Case, guidance: Guidance) -> Made:
    """The picture of ``PROMPT`` by a pipeline, guided as our task is."""
    one = 1.0  # the scale at which diffusers does not guide
    name, settings = SCHEDULERS[case.scheduler]
    config = pipe.stored_scheduler_config  # of the last case's scheduler there are left-overs
    pipe.scheduler = getattr(diffusers, name).from_config(
        config, prediction_type=case.prediction, **settings
    )
    height, width = pipe.stored_image_size
    words: dict[str, Any] = {"height": height, "width": width}
    if "Pix2Pix" in case.pipeline:
        image: Any = photo(height, width) if case.task != "edit-scaled" else _scaled_latent(pipe)
        words = {"image": image, "image_guidance_scale": guidance.image or one}
    elif "Inpaint" in case.pipeline:
        words |= {"image": photo(height, width), "mask_image": mask(height, width)}
        words["strength"] = 1.0
    last: list[np.ndarray] = []

    def keep(_pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        last[:] = [given["latents"].numpy().copy()]
        return given

    found = pipe(
        "" if case.task == "sr" else PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=guidance.text or one,
        latents=torch.from_numpy(noise()),
        callback_on_step_end=keep,
        output_type="pt",
        **words,
    )
    return Made(latent=last[0], image=found.images.numpy() * 2 - 1)


def _scaled_latent(pipe: Any) -> torch.Tensor:
    """The image latent [1, 4, h, w] as other pipelines than InstructPix2Pix scale it."""
    with torch.no_grad():
        sample = pipe.image_processor.preprocess(photo(*pipe.stored_image_size))
        return pipe.vae.encode(sample).latent_dist.mode() * pipe.vae.config.scaling_factor


# ----------------------------------------------------------------------------------- comparisons


def compare(wanted: Made, found: Made) -> Likeness:
    """How near ours is to theirs."""
    return Likeness(
        latents_db=psnr(wanted.latent, found.latent), image_db=psnr(wanted.image, found.image)
    )


class Pairs:
    """Checkpoints, bundles and pipelines below a folder, each made once.

    ``architecture`` is that of Stable Diffusion's checkpoints; SDXL's is ``tiny-sdxl``.
    """

    def __init__(self, home: Path, architecture: str = "tiny") -> None:
        self.home, self.architecture = home, architecture
        self.made: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def folder(self, case: Case) -> Path:
        """The checkpoint."""
        kind = "tiny-sdxl" if "XL" in case.pipeline else self.architecture
        whole = self._once(kind, lambda: checkpoint(kind, self.home / kind))
        if case.zeros:
            return whole
        name = f"{kind}-encoded"
        return self._once(name, lambda: without_zeros(whole, self.home / name))

    def loop(self, case: Case) -> runner.Loop:
        """Our side of a case."""
        folder = self.folder(case)
        name = f"bundle-{folder.name}-{case.task}"
        loop = self._once(name, lambda: export(folder, case.task, self.home / name))
        return with_table(loop, case, folder, self.home / f"scheduler-{folder.name}-{case}")

    def pipe(self, case: Case) -> Any:
        """Their side of a case."""
        folder = self.folder(case)
        name = f"{case.pipeline}-{folder.name}-{case.task}"
        return self._once(name, lambda: stock(folder, case.task, case.pipeline, self.home / name))

    def make(self, case: Case) -> tuple[Made, Made]:
        """Theirs and ours."""
        loop = self.loop(case)
        return by_diffusers(self.pipe(case), case, loop.task.guidance), by_us(loop)

    def measure(self, case: Case) -> Likeness:
        """Run both sides of a case."""
        return compare(*self.make(case))
