"""One LoRA file: its layers as stored, under the names of any common trainer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export import checkpoint
from mtu_export.models.lora import forms, keys
from mtu_export.models.lora.keys import COMPONENTS
from mtu_export.models.lora.peft import Config, from_folder, from_header
from mtu_export.spec import CheckpointError, shown

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e6
"""Largest magnitude of a value in a LoRA."""
_LARGEST_DELTA = 1e15
"""Largest bound of a value of Δ: neither it nor the norm of a row overflows float32."""
_SUFFIX = ".safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, kw_only=True, eq=False)
class Magnitude:
    """m of a DoRA: the norm [n] that each row (``axis`` 0) or column (1) of a weight has."""

    axis: int
    values: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """What a file changes in one layer: Δ of its weight is ``factor`` · ``weight``.

    ``name`` is a dotted path, or one whose dots are underscores (``flat``). ``factor`` is
    alpha/rank. ``bias`` is Δ of the bias itself. With ``magnitude`` (DoRA) the weight becomes
    m · (W + Δ) / ||W + Δ||.
    """

    component: str
    name: str
    flat: bool
    factor: float
    weight: forms.Delta | None
    bias: Tensor | None = None
    magnitude: Magnitude | None = None

    @property
    def form(self) -> str:
        """The method by which it was trained."""
        method = "full" if self.weight is None else self.weight.method
        if self.magnitude is None:
            return method
        return "DoRA" if method == "LoRA" else f"{method} with DoRA"

    @property
    def shapes(self) -> dict[str, forms.Shape]:
        """Shape of Δ of each parameter that it changes."""
        shapes = {} if self.weight is None else {"weight": self.weight.shape}
        return shapes if self.bias is None else {**shapes, "bias": tuple(self.bias.shape)}

    def delta(self, parameter: str = "weight") -> Tensor:
        """Δ of a parameter in float32."""
        if parameter == "bias":
            assert self.bias is not None
            return self.bias
        assert self.weight is not None
        return self.factor * self.weight.values()


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A validated LoRA file; its tensors are memory-mapped."""

    path: Path
    sha256: str
    layers: tuple[Layer, ...]
    adapter: str | None = None
    """The adapter that was chosen by name."""


def read(path: Path, adapter: str | None = None) -> Lora:
    """Read a LoRA, or one of several adapters, from a safetensors file.

    A pickle is refused without being opened. Raises ``CheckpointError`` with the file and the
    problem: a damaged file, a tensor of another method, an unpaired matrix, NaN or Inf, several
    adapters of which none is named.
    """
    if path.suffix in _PICKLES:
        raise CheckpointError(f"{path} is a pickle: refused; save the LoRA as safetensors")
    if path.suffix != _SUFFIX or not path.is_file():
        raise CheckpointError(f"{path} is not a {_SUFFIX} file")
    headers, metadata = _headers(path)
    names = keys.parse(headers, path)
    if not names:
        raise CheckpointError(f"{path} holds no tensor; {keys.LEGAL}")
    chosen = keys.select(names, adapter, path)
    tensors = _tensors(path, list(chosen))
    configs = from_folder(path) or from_header(metadata, path, COMPONENTS)
    groups: dict[tuple[str, str, bool], dict[str, Tensor]] = {}
    for stored, key in chosen.items():
        roles = groups.setdefault(key[:3], {})
        if key.role in roles:
            raise CheckpointError(f"{path}: {key.role} of layer {key.layer!r} appears twice")
        roles[key.role] = tensors[stored]
    layers = [_layer(*key, roles, configs, path) for key, roles in groups.items()]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Lora(path=path, sha256=digest, layers=tuple(layers), adapter=adapter)


def _headers(path: Path) -> tuple[dict[str, checkpoint.Header], dict[str, str]]:
    """Shapes and dtypes of a file's tensors, checked, and its metadata."""
    from safetensors import SafetensorError, safe_open

    headers = checkpoint.file_headers(path, dtypes=(*checkpoint.FLOATS, *checkpoint.INTEGERS))
    for name, header in headers.items():
        if header.dtype.startswith("I") and not name.endswith(".alpha"):
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {header.dtype!r}")
        if not math.prod(header.shape):
            raise CheckpointError(f"{path}: tensor {name!r} is empty: shape {list(header.shape)}")
    try:
        with safe_open(path, framework="pt") as opened:
            return headers, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _tensors(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Tensors of a file, checked for finite values."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        low, high = (float(bound) for bound in tensor.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or Inf")
        if max(-low, high) > LARGEST:
            raise CheckpointError(f"{path}: tensor {name!r} holds values above {LARGEST:g}")
    return tensors


def _layer(
    component: str,
    name: str,
    flat: bool,
    roles: Mapping[str, Tensor],
    configs: Mapping[str, Config],
    path: Path,
) -> Layer:
    """Build a layer, with its tensors checked against each other, and its factor alpha/rank."""
    where = f"{path}: layer {name!r} of {component}"
    try:
        weight = forms.build(roles)
    except ValueError as error:
        raise CheckpointError(f"{where} {error}") from None
    if weight is None and "diff_b" not in roles:
        raise CheckpointError(f"{where} has no matrix, only {', '.join(roles)}")
    config = configs.get(component)
    factor = 1.0
    if weight is not None:
        factor = _factor(name, weight, roles.get("alpha"), config, where)
        if weight.bound * abs(factor) > _LARGEST_DELTA:
            raise CheckpointError(f"{where}: its values may exceed {_LARGEST_DELTA:g}")
    elif "alpha" in roles:
        raise CheckpointError(f"{where} has an alpha and no matrix that it scales")
    magnitude = _magnitude(roles, weight, where)
    if config is not None and config.dora and magnitude is None:
        raise CheckpointError(f"{where} has no magnitude, its LoraConfig says use_dora")
    return Layer(
        component=component,
        name=name,
        flat=flat,
        factor=factor,
        weight=weight,
        bias=_bias(roles, factor, where),
        magnitude=magnitude,
    )


def _factor(
    name: str, weight: forms.Delta, alpha: Tensor | None, config: Config | None, where: str
) -> float:
    """alpha/rank by the stored alpha or by the config, 1 without either.

    Where a method has no rank, alpha is refused; but for LoKr, whose two whole factors have a
    stored alpha that means nothing (LyCORIS sets it to the rank that it did not use).
    """
    factor = config.factor(name, weight.rank, where) if config else 1.0
    if alpha is None:
        return factor
    value = _scalar(alpha, where)
    if weight.rank is None:
        if weight.method == "LoKr":
            return factor
        raise CheckpointError(f"{where}: an alpha has no meaning for {weight.method}")
    stored = value / weight.rank
    if config and not math.isclose(stored, factor, rel_tol=1e-6):
        raise CheckpointError(
            f"{where}: alpha {value:g} contradicts the LoraConfig, which scales by {shown(factor)}"
        )
    return stored


def _bias(roles: Mapping[str, Tensor], factor: float, where: str) -> Tensor | None:
    """Δ of the bias: stored whole, or that of a LoRA's ``up``, which alpha/rank scales too."""
    stored = [role for role in ("diff_b", "bias") if role in roles]
    if not stored:
        return None
    if len(stored) > 1:
        raise CheckpointError(f"{where} has two differences of its bias")
    (role,) = stored
    bias = roles[role].float()
    if bias.ndim != 1:
        raise CheckpointError(f"{where}: {role} has shape {list(bias.shape)}, needs one axis")
    if role == "bias" and "up" not in roles:
        raise CheckpointError(f"{where} has the bias of a LoRA without its matrices")
    return bias if role == "diff_b" else bias * factor


def _magnitude(
    roles: Mapping[str, Tensor], weight: forms.Delta | None, where: str
) -> Magnitude | None:
    """m of a DoRA.

    PEFT's is that of rows, whatever its shape; LyCORIS' says by its shape what it is of: [n, 1] or
    [n, 1, 1, 1] of rows, [1, n] or [1, n, 1, 1] of columns.
    """
    stored = [role for role in ("magnitude", "dora_scale") if role in roles]
    if not stored:
        return None
    if len(stored) > 1 or weight is None or len(weight.shape) < 2:
        raise CheckpointError(f"{where} has a DoRA magnitude without one product that it scales")
    tensor = roles[stored[0]].float()
    axis = next((k for k, n in enumerate(tensor.shape) if n > 1), 0)
    if tensor.numel() != max(tensor.shape, default=1) or axis > 1:
        raise CheckpointError(
            f"{where}: {stored[0]} has shape {list(tensor.shape)}, needs one axis"
        )
    return Magnitude(axis=0 if stored[0] == "magnitude" else axis, values=tensor.flatten())


def _scalar(tensor: Tensor, where: str) -> float:
    if tensor.numel() != 1:
        raise CheckpointError(f"{where}: alpha has shape {list(tensor.shape)}, needs one number")
    return float(tensor)
