"""The names of tensors in LoRA files: kohya's, LyCORIS', diffusers' and PEFT's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mtu_export.spec import CheckpointError, shown

COMPONENTS: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2")
LEGAL = (
    "legal: lora_A and lora_B, lora_down and lora_up, lora_mid, hada_w1_a ..., lokr_w1 ..., "
    "diff, diff_b, w_norm, b_norm, alpha, dora_scale, lora_magnitude_vector"
)
DEFAULT_ADAPTER = "default"
"""The adapter of matrices without one in their names, as PEFT calls it."""
_WRAPPER = "base_model.model."
_FLAT = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
}
"""Prefixes of names with underscores for dots: kohya's, and that of LyCORIS without kohya."""
_LEAF = re.compile(
    r"(?P<layer>.+?)\.(?:"
    r"lora_(?P<matrix>A|B|down|up|mid)(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|lora_(?P<biased>B|up)(?:\.(?P<adapter_>[^.]+))?\.bias"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.(?P<adapter__>(?!weight$)[^.]+))?(?:\.weight)?"
    r"|(?P<lycoris>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r"(?:\.(?P<adapter___>[^.]+))?"
    r"|(?P<other>alpha|dora_scale|diff|diff_b|w_norm|b_norm))"
)
_ROLES = {
    "A": "down",
    "B": "up",
    "w_norm": "diff",
    "b_norm": "diff_b",
    "lora_magnitude_vector": "magnitude",
}
_OTHER_METHODS = (
    (r"\.(ia3_\w+|on_input)\b", "an IA3"),
    (r"\.(oft_|boft_)", "an OFT"),
    (r"\.(lora_E|ranknum)\b", "an AdaLoRA"),
    (r"\.[ab][12m]\.weight$", "a GLoRA"),
    (r"\.vera_lambda_", "a VeRA"),
    (r"\.lora_embedding_", "a LoRA of an embedding"),
    (r"\.bias_(indices|values|size)$", "a LoRA with sparse biases"),
    (r"\.lora_A(\.\w+)?\.bias$", "a LoRA with biases inside its product"),
    (r"\.(set_weight|reshape_weight)$", "a replacement of weights"),
    (
        r"^(bundle_emb|emb_params|string_to_param|clip_[lg]$|<[^.]*>$)",
        "a textual inversion, which --embedding takes",
    ),
)
"""Tensors of other methods than a difference of the weights of single layers."""


class Key(NamedTuple):
    """What a tensor's name says. ``flat``: the layer's name has underscores for dots."""

    component: str
    layer: str
    flat: bool
    role: str
    adapter: str | None


def parse(names: Iterable[str], path: Path) -> dict[str, Key]:
    """The key of each tensor of a file. Raises ``CheckpointError`` for one of another method."""
    keys = {}
    for name, stored in _modern_names(names, path).items():
        keys[stored] = _parse_name(name, stored, path)
    return keys


def _modern_names(names: Iterable[str], path: Path) -> dict[str, str]:
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
        elif not name.startswith(tuple(_FLAT)):
            entry = convert_unet_state_dict_to_peft(entry)
        (name,) = entry
        if name in stored_names:
            raise CheckpointError(
                f"{path}: {_cut(stored_names[name])} and {_cut(stored)} are the same tensor"
            )
        stored_names[name] = stored
    return stored_names


def _parse_name(name: str, stored: str, path: Path) -> Key:
    for pattern, method in _OTHER_METHODS:
        if re.search(pattern, stored):
            raise CheckpointError(
                f"{path}: tensor {_cut(stored)} belongs to {method}, not to a LoRA; {LEGAL}"
            )
    match = _LEAF.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{path}: tensor {_cut(stored)} is not part of a LoRA; {LEGAL}")
    layer = match["layer"]
    adapter = next((match[group] for group in _ADAPTERS if match[group] is not None), None)
    leaf = next(match[group] for group in _LEAVES if match[group] is not None)
    role = "bias" if match["biased"] else _ROLES.get(leaf, leaf)
    for prefix, component in _FLAT.items():
        if layer.startswith(prefix):
            return Key(component, layer.removeprefix(prefix), True, role, adapter)
    for component in COMPONENTS:
        if layer.startswith(f"{component}."):
            inner = layer.removeprefix(f"{component}.").removeprefix(_WRAPPER)
            return Key(component, inner, False, role, adapter)
    return Key("unet", layer, False, role, adapter)


def _cut(name: str) -> str:
    """A name in quotes, its middle left out where it is long: both ends say what it is."""
    text = repr(name)
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}"


_ADAPTERS = ("adapter", "adapter_", "adapter__", "adapter___")
_LEAVES = ("matrix", "biased", "magnitude", "lycoris", "other")


def select(keys: dict[str, Key], adapter: str | None, path: Path) -> dict[str, Key]:
    """The tensors of one adapter; what is stored once for all, such as alpha, belongs to each.

    Raises ``CheckpointError`` where several are there and none is named, and for an unknown one.
    """
    own = {key: k.adapter or DEFAULT_ADAPTER for key, k in keys.items() if k.role not in _SHARED}
    names = list(dict.fromkeys(own.values()))
    listed = ", ".join(shown(name) for name in names[:4])
    listed += f" and {len(names) - 4} more" if len(names) > 4 else ""
    if adapter is None and len(names) > 1:
        raise CheckpointError(f"{path} holds several adapters, name one as FILE#name: {listed}")
    if adapter is not None and adapter not in names:
        raise CheckpointError(f"{path} has no adapter {shown(adapter)}; its adapters: {listed}")
    if len(names) < 2:
        return keys
    chosen = {k[:3] for name, k in keys.items() if own.get(name) == adapter}
    return {
        name: k
        for name, k in keys.items()
        if own.get(name) == adapter or (name not in own and k[:3] in chosen)
    }


_SHARED = ("alpha", "dora_scale", "diff", "diff_b")
"""Roles whose names have no place for an adapter."""
