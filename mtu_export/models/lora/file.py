"""One LoRA file: its layers as stored, under the names of any common trainer."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export import checkpoint
from mtu_export.models.lora.peft import Config, from_folder, from_header
from mtu_export.spec import CheckpointError, shown

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2")
LARGEST = 1e6
"""Largest magnitude of a value in a LoRA, so that no sum of products overflows float32."""
_SUFFIX = ".safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_WRAPPER = "base_model.model."
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_LEAF = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<role>A|B|down|up|mid)(?:\.default(?:_\d+)?)?\.weight|alpha)"
)
_ROLES = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid", None: "alpha"}
_LEGAL = "legal: lora_A and lora_B, lora_down and lora_up, lora_mid, alpha"
_OTHER_METHODS = (
    (r"\.(dora_scale|lora_magnitude_vector)\b", "a DoRA"),
    (r"\.hada_", "a LoHa"),
    (r"\.lokr_", "a LoKr"),
    (r"\.(ia3_\w+|on_input)\b", "an IA3"),
    (r"\.(oft_|boft_)", "an OFT"),
    (r"\.(lora_E|ranknum)\b", "an AdaLoRA"),
    (r"\.lora_embedding_", "a LoRA of an embedding"),
    (r"\.(lora_(A|B|down|up)|lora\.(down|up))(\.\w+)?\.bias$", "a LoRA with biases"),
    (r"\.(diff|diff_b|set_weight)$", "a full difference of weights"),
    (r"^(bundle_emb|emb_params|string_to_param)\b", "a textual inversion"),
)
"""Tensors of other methods than a sum of low-rank products for Linear and Conv2d layers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Δ = alpha/rank · up · (mid) · down of one layer.

    ``down`` [r, in] or [r, in, k, k]; ``up`` [out, r] or [out, r, 1, 1]; ``mid`` [r, r, k, k],
    in which case ``down`` is 1 x 1. ``name`` is a dotted path, or one whose dots are underscores
    (``flat``).
    """

    component: str
    name: str
    flat: bool
    factor: float
    down: Tensor
    up: Tensor
    mid: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of Δ, which is that of the layer's weight."""
        inner = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *inner.shape[2:])

    def delta(self) -> Tensor:
        """Δ in float32, of :attr:`shape`."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if self.mid is not None:
            spread = self.mid.float().permute(0, 2, 3, 1) @ down  # [r, k, k, in]
            down = spread.permute(0, 3, 1, 2).flatten(1)
        return (self.factor * (up @ down)).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A validated LoRA file; its tensors are memory-mapped."""

    path: Path
    sha256: str
    layers: tuple[Layer, ...]


def read(path: Path) -> Lora:
    """Read a LoRA from a safetensors file with the names of PEFT, diffusers or kohya.

    A pickle is refused without being opened. Raises ``CheckpointError`` with the file and the
    problem: a damaged file, a tensor of another method, an unpaired matrix, NaN or Inf.
    """
    if path.suffix in _PICKLES:
        raise CheckpointError(f"{path} is a pickle: refused; save the LoRA as safetensors")
    if path.suffix != _SUFFIX or not path.is_file():
        raise CheckpointError(f"{path} is not a {_SUFFIX} file")
    tensors, metadata = _tensors(path)
    configs = from_folder(path) or from_header(metadata, path, COMPONENTS)
    groups: dict[tuple[str, str, bool], dict[str, Tensor]] = {}
    for name, stored in _peft_names(tensors, path).items():
        component, layer, flat, role = _parse_name(name, stored, path)
        roles = groups.setdefault((component, layer, flat), {})
        if role in roles:
            raise CheckpointError(f"{path}: {role} of layer {layer!r} appears twice")
        roles[role] = tensors[stored]
    if not groups:
        raise CheckpointError(f"{path} holds no tensor; {_LEGAL}")
    layers = [_layer(*key, roles, configs, path) for key, roles in groups.items()]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Lora(path=path, sha256=digest, layers=tuple(layers))


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file, checked for size and finite values, and its metadata."""
    from safetensors import SafetensorError, safe_open

    headers = checkpoint.file_headers(path, dtypes=(*checkpoint.FLOATS, *checkpoint.INTEGERS))
    for name, header in headers.items():
        if header.dtype.startswith("I") and not name.endswith(".alpha"):
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {header.dtype!r}")
        if not math.prod(header.shape):
            raise CheckpointError(f"{path}: tensor {name!r} is empty: shape {list(header.shape)}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in headers}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        low, high = (float(bound) for bound in tensor.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or Inf")
        if max(-low, high) > LARGEST:
            raise CheckpointError(f"{path}: tensor {name!r} holds values above {LARGEST:g}")
    return tensors, metadata


def _peft_names(names: Iterable[str], path: Path) -> dict[str, str]:
    """Each tensor's name in PEFT's style -> its name in the file; kohya's names are kept.

    diffusers converts its own old names. Its conversion of kohya's names is not used, because it
    drops DoRA scales, and half of the names of a file that mixes both naming schemes of SDXL.
    """
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    stored_names: dict[str, str] = {}
    for stored in names:
        name = stored.removeprefix(_WRAPPER)
        entry = {name: stored}
        if name.startswith("text_encoder"):
            for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
                entry = convert_state_dict_to_peft(entry, kind)
        elif not name.startswith(tuple(_KOHYA)):
            entry = convert_unet_state_dict_to_peft(entry)
        (name,) = entry
        if name in stored_names:
            raise CheckpointError(
                f"{path}: {stored_names[name]!r} and {stored!r} are the same tensor"
            )
        stored_names[name] = stored
    return stored_names


def _parse_name(name: str, stored: str, path: Path) -> tuple[str, str, bool, str]:
    """Component, layer, whether the layer's name is flat, and role of a tensor."""
    for pattern, method in _OTHER_METHODS:
        if re.search(pattern, stored):
            raise CheckpointError(
                f"{path}: tensor {stored!r} belongs to {method}, not to a LoRA; {_LEGAL}"
            )
    match = _LEAF.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{path}: tensor {stored!r} is not part of a LoRA; {_LEGAL}")
    layer, role = match["layer"], _ROLES[match["role"]]
    for prefix, component in _KOHYA.items():
        if layer.startswith(prefix):
            return component, layer.removeprefix(prefix), True, role
    for component in COMPONENTS:
        if layer.startswith(f"{component}."):
            inner = layer.removeprefix(f"{component}.").removeprefix(_WRAPPER)
            return component, inner, False, role
    return "unet", layer, False, role


def _layer(
    component: str,
    name: str,
    flat: bool,
    roles: Mapping[str, Tensor],
    configs: Mapping[str, Config],
    path: Path,
) -> Layer:
    """Build a layer, with its pair and ranks checked and its factor alpha/rank."""
    where = f"{path}: layer {name!r} of {component}"
    for role in ("down", "up"):
        if role not in roles:
            raise CheckpointError(f"{where} has no {role} matrix: its pair is missing")
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    shapes = ", ".join(f"{role} {list(roles[role].shape)}" for role in roles if role != "alpha")
    valid = down.ndim in (2, 4) and up.ndim in (2, 4) and set(up.shape[2:]) <= {1}
    if mid is not None:
        valid = valid and mid.ndim == 4 and set(down.shape[2:]) <= {1}
    if not valid:
        raise CheckpointError(f"{where} is not a product of matrices or convolutions: {shapes}")
    rank = down.shape[0]
    if up.shape[1] != rank or (mid is not None and mid.shape[:2] != (rank, rank)):
        raise CheckpointError(f"{where}: ranks differ: {shapes}")
    config = configs.get(component)
    factor = config.factor(name, rank, where) if config else 1.0
    if "alpha" in roles:
        stored = _scalar(roles["alpha"], where) / rank
        if config and not math.isclose(stored, factor, rel_tol=1e-6):
            raise CheckpointError(
                f"{where}: alpha {stored * rank:g} contradicts the LoraConfig, which scales by "
                f"{shown(factor)}"
            )
        factor = stored
    return Layer(
        component=component, name=name, flat=flat, factor=factor, down=down, up=up, mid=mid
    )


def _scalar(tensor: Tensor, where: str) -> float:
    if tensor.numel() != 1:
        raise CheckpointError(f"{where}: alpha has shape {list(tensor.shape)}, needs one number")
    return float(tensor)
