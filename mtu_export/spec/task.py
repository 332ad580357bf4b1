"""What a task is: its conditioning, guidance and prompt, as checkpoint format 1 writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtu_export.spec.errors import CheckpointError

CONDITIONING_CHANNELS: Mapping[str, int | None] = {
    "image_latent": None,  # the VAE's latent channels
    "mask": 1,
    "masked_image_latent": None,
    "image": 3,
}
GUIDANCE_SCALES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "text": ("text",),
    "text_image": ("text", "image"),
}
TASK_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Regular expression of a legal name, whole."""
LARGEST_COUNT = 10_000
"""Of channels, steps and guidance scales."""


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= LARGEST_COUNT  # false for NaN


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_COUNT


def shown(value: object) -> str:
    """A value of somebody else's JSON in one printable line of at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Channels that follow the noisy latent in ``sample``.

    ``scaled`` (``image_latent`` only): whether the VAE latent is multiplied by the VAE's scaling
    factor.
    """

    kind: str
    channels: int
    scaled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in CONDITIONING_CHANNELS:
            raise CheckpointError(
                f"unknown conditioning kind {shown(self.kind)}; "
                f"legal: {', '.join(CONDITIONING_CHANNELS)}"
            )
        fixed = CONDITIONING_CHANNELS[self.kind]
        if not _is_count(self.channels) or (fixed is not None and self.channels != fixed):
            legal = "a positive integer" if fixed is None else str(fixed)
            raise CheckpointError(
                f"conditioning {self.kind!r}: channels must be {legal}, got {shown(self.channels)}"
            )
        if not isinstance(self.scaled, bool):
            raise CheckpointError(f"conditioning {self.kind!r}: scaled must be true or false")
        if not self.scaled and self.kind != "image_latent":
            raise CheckpointError(f"conditioning {self.kind!r} takes no 'scaled'")

    @property
    def needs_image(self) -> bool:
        """Whether these channels are made from the user's image."""
        return self.kind != "mask"

    @property
    def needs_mask(self) -> bool:
        """Whether these channels are made from the user's mask."""
        return "mask" in self.kind

    @property
    def encodes_image(self) -> bool:
        """Whether these channels are a latent of the VAE encoder."""
        return self.kind.endswith("image_latent")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: ``none`` (1 pass a step), ``text`` (2) or ``text_image`` (3)."""

    kind: str
    text: float | None = None
    image: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in GUIDANCE_SCALES:
            raise CheckpointError(
                f"unknown guidance kind {shown(self.kind)}; legal: {', '.join(GUIDANCE_SCALES)}"
            )
        for scale in ("text", "image"):
            value = getattr(self, scale)
            if (scale in GUIDANCE_SCALES[self.kind]) != _is_number(value):
                needs = " and ".join(GUIDANCE_SCALES[self.kind]) or "no scale"
                raise CheckpointError(
                    f"guidance {self.kind!r} takes {needs}, got {scale}={shown(value)}"
                )

    @property
    def passes(self) -> int:
        """Denoiser passes a step."""
        return 1 + len(GUIDANCE_SCALES[self.kind])

    def to_json(self) -> dict[str, Any]:
        """The guidance object of a task: its kind and the scales of this kind."""
        return {"kind": self.kind} | {s: getattr(self, s) for s in GUIDANCE_SCALES[self.kind]}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a checkpoint; ``index`` is its row in the task embedding.

    ``strength`` is the default share of the schedule that a task which starts from a picture runs.
    """

    name: str
    index: int
    conditioning: tuple[Conditioning, ...]
    guidance: Guidance
    steps: int
    prompt: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(TASK_NAME, self.name):
            raise CheckpointError(
                f"task name {shown(self.name)} is not legal: letters, digits, '-' and '_', "
                "at most 64"
            )
        if not _is_count(self.steps):
            raise CheckpointError(f"task {self.name!r}: steps must be a positive integer")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise CheckpointError(f"task {self.name!r}: prompt must be a string or null")

    @property
    def channels(self) -> int:
        """Σ channels of the conditioning; the input width is ``in_channels`` more."""
        return sum(entry.channels for entry in self.conditioning)

    @property
    def needs_image(self) -> bool:
        """Whether the user gives an image."""
        return any(entry.needs_image for entry in self.conditioning)

    @property
    def needs_mask(self) -> bool:
        """Whether the user gives a mask."""
        return any(entry.needs_mask for entry in self.conditioning)

    @property
    def encodes_image(self) -> bool:
        """Whether the loop runs the VAE encoder."""
        return any(entry.encodes_image for entry in self.conditioning)

    def to_json(self) -> dict[str, Any]:
        """The task object of checkpoint format 1."""
        entries: list[dict[str, Any]] = []
        for entry in self.conditioning:
            record: dict[str, Any] = {"kind": entry.kind, "channels": entry.channels}
            if not entry.scaled:
                record["scaled"] = False
            entries.append(record)
        return {
            "name": self.name,
            "conditioning": entries,
            "guidance": self.guidance.to_json(),
            "steps": self.steps,
            "prompt": self.prompt,
        }
