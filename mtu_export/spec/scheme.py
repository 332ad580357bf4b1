"""How weights are stored, and how close to PyTorch an artefact must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for a whole tensor."""


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale for each index along ``axis``; weight [out, in, ...] has out at axis 0."""

    axis: int = 0


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """One scale for each run of ``size`` values along the input axis."""

    size: int


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True, kw_only=True)
class FloatWeights:
    """Weights stay floating point; ``dtype`` is ``"float32"`` or ``"float16"``."""

    dtype: str


@dataclass(frozen=True, kw_only=True)
class IntWeights:
    """Symmetric signed integer codes of ``bits``, no zero point."""

    bits: int
    granularity: Granularity


@dataclass(frozen=True, kw_only=True)
class KeepFloat:
    """Layers whose path matches ``pattern`` (a regular expression, whole path) keep float.

    A ``required`` pattern that matches no layer is refused.
    """

    pattern: str
    why: str
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights are stored and how close to PyTorch the artefact must be.

    ``floor_db`` holds for float activations, ``int8_floor_db`` where the target quantises
    activations too; ``pass_floor_db`` for x after each pass of a loop, where guidance multiplies
    the error of the denoiser. Of ``overrides`` the first that matches a layer wins.
    """

    name: str
    weights: FloatWeights | IntWeights
    floor_db: float
    pass_floor_db: float
    int8_floor_db: float | None = None
    overrides: tuple[KeepFloat, ...] = ()

    def floor(self, activations: str) -> float:
        """The floor in dB for ``Lowered.activations``."""
        if activations == "dynamic_int8" and self.int8_floor_db is not None:
            return self.int8_floor_db
        return self.floor_db
