"""Rows: the schemes, and the task presets that `upcycle` offers.

A checkpoint's own tasks come from its config, never from here.
"""

from __future__ import annotations

from collections.abc import Mapping

from mtu_export.spec import (
    Conditioning,
    FloatWeights,
    Guidance,
    IntWeights,
    KeepFloat,
    PerChannel,
    Scheme,
    Task,
)

_BORDERS = (
    KeepFloat(pattern=r"conv_in", why="first layer"),
    KeepFloat(pattern=r"conv_out", why="last layer"),
    KeepFloat(pattern=r"(time|add)_embedding\..*", why="time embedding"),
)

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp32", weights=FloatWeights(dtype="float32"), floor_db=90.0),
        Scheme(name="fp16", weights=FloatWeights(dtype="float16"), floor_db=50.0),
        Scheme(
            name="int8",
            weights=IntWeights(bits=8, granularity=PerChannel(axis=0)),
            floor_db=35.0,
            static_floor_db=25.0,
            overrides=_BORDERS,
        ),
    )
}

ARCHITECTURES = ("sd", "sdxl")
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
        for architecture in ARCHITECTURES
    }


_IMAGE = (Conditioning(kind="image_latent", channels=4),)
_FILL = (
    Conditioning(kind="mask", channels=1),
    Conditioning(kind="masked_image_latent", channels=4),
)


def _text(sd: float, sdxl: float) -> dict[str, Guidance]:
    return {"sd": Guidance(kind="text", text=sd), "sdxl": Guidance(kind="text", text=sdxl)}


def _text_image(sd: tuple[float, float], sdxl: tuple[float, float]) -> dict[str, Guidance]:
    rows = zip(ARCHITECTURES, (sd, sdxl), strict=True)
    return {name: Guidance(kind="text_image", text=t, image=i) for name, (t, i) in rows}


TASKS: Mapping[str, Mapping[str, Task]] = {
    "t2i": _preset("t2i", (), _text(7.5, 5.0)),
    "edit": _preset("edit", _IMAGE, _text_image((7.5, 1.6), (10.0, 1.5))),
    "sr": _preset("sr", _IMAGE, dict.fromkeys(ARCHITECTURES, Guidance(kind="none")), prompt=""),
    "inpaint": _preset("inpaint", _IMAGE, _text_image((4.0, 1.5), (4.0, 1.5))),
    "fill": _preset("fill", _FILL, _text(7.5, 5.0)),
}
"""Preset -> architecture -> task. Guidance and steps: MTU paper, section on inference; ``fill``
is not in the paper: the channels and guidance of Stable Diffusion inpainting."""
