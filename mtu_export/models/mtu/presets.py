"""Task presets of the paper and of Stable Diffusion inpainting, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.spec import (
    Conditioning,
    Guidance,
    PlanError,
    Task,
    UnknownName,
)


def resolve_tasks(names: Sequence[str], config: Mapping[str, Any]) -> list[Task]:
    """Tasks by preset name or JSON file, in order, for a UNet of this config."""
    sdxl = PipelineLayout(config).is_sdxl
    tasks: list[Task] = []
    for index, name in enumerate(names):
        if name in TASKS:
            task = replace(TASKS[name]["sdxl" if sdxl else "sd"], index=index)
        elif name.endswith(".json"):
            task = mtu_config.task_from_json(checkpoint.read_json(Path(name)), index, name)
        else:
            raise UnknownName("task preset", name, [*TASKS, "a FILE.json with a task"])
        tasks.append(task)
    task_names = [task.name for task in tasks]
    if not tasks:
        raise PlanError(f"name at least one --task; presets: {', '.join(TASKS)}")
    if len(set(task_names)) < len(task_names):
        raise PlanError(f"tasks must have different names, got {', '.join(task_names)}")
    return tasks


def tasks_of_source(
    names: Sequence[str], config: Mapping[str, Any], index: Mapping[str, Any]
) -> list[Task]:
    """As :func:`resolve_tasks`, for a dense source with this ``model_index.json``.

    InstructPix2Pix was trained on image latents that are not multiplied by the scaling factor (nor
    are SDXL's, but for CosXL), so the preset ``edit`` takes them so from such a source. Source:
    diffusers, ``pipeline_stable_diffusion_instruct_pix2pix.py`` and its SDXL twin.
    """
    tasks = resolve_tasks(names, config)
    if index.get("_class_name") not in _UNSCALED or index.get("is_cosxl_edit") is True:
        return tasks
    return [
        replace(task, conditioning=tuple(map(_unscaled, task.conditioning)))
        if name == "edit"
        else task
        for name, task in zip(names, tasks, strict=True)
    ]


_UNSCALED = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
)


def _unscaled(entry: Conditioning) -> Conditioning:
    return replace(entry, scaled=False) if entry.kind == "image_latent" else entry


def presets_of_width(channels: int, latent: int) -> list[str]:
    """Presets whose UNet has ``channels`` input channels, of which ``latent`` are the latent's."""
    return [name for name, task in TASKS.items() if latent + task["sd"].channels == channels]


_GUIDED = ("sd", "sdxl")
"""Families of guidance scales and step counts: SD 1.x and 2.x, SDXL."""


def _preset(
    name: str,
    conditioning: tuple[Conditioning, ...],
    guidance: Mapping[str, Guidance],
    prompt: str | None = None,
) -> dict[str, Task]:
    return {
        architecture: Task(
            name=name,
            index=0,
            conditioning=conditioning,
            guidance=guidance[architecture],
            steps={"sd": 20, "sdxl": 50}[architecture],
            prompt=prompt,
        )
        for architecture in _GUIDED
    }


_IMAGE = (Conditioning(kind="image_latent", channels=4),)


_FILL = (
    Conditioning(kind="mask", channels=1),
    Conditioning(kind="masked_image_latent", channels=4),
)


def _text(sd: float, sdxl: float) -> dict[str, Guidance]:
    return {"sd": Guidance(kind="text", text=sd), "sdxl": Guidance(kind="text", text=sdxl)}


def _text_image(sd: tuple[float, float], sdxl: tuple[float, float]) -> dict[str, Guidance]:
    scales = zip(_GUIDED, (sd, sdxl), strict=True)
    return {name: Guidance(kind="text_image", text=t, image=i) for name, (t, i) in scales}


TASKS: Mapping[str, Mapping[str, Task]] = {
    "t2i": _preset("t2i", (), _text(7.5, 5.0)),
    "edit": _preset("edit", _IMAGE, _text_image((7.5, 1.6), (10.0, 1.5))),
    "sr": _preset("sr", _IMAGE, dict.fromkeys(_GUIDED, Guidance(kind="none")), prompt=""),
    "inpaint": _preset("inpaint", _IMAGE, _text_image((4.0, 1.5), (4.0, 1.5))),
    "fill": _preset("fill", _FILL, _text(7.5, 5.0)),
}
"""Preset -> architecture -> task. Guidance and steps: MTU paper, section on inference; ``fill``
is not in the paper: the channels and guidance of Stable Diffusion inpainting."""
