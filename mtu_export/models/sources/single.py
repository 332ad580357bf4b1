"""A model in one safetensors file, in the names of latent diffusion (LDM), as a checkpoint.

``maps/ldm.json`` says which tensor of the file is which of a part; configs come from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Document, Folder, Header, Tensors, View
from mtu_export.checkpoint.maps import mapping
from mtu_export.checkpoint.maps.layout import Layout, arrange
from mtu_export.models.sources import configs, kinds, vocabulary
from mtu_export.spec import CheckpointError

_MAP = Path(__file__).parent / "maps" / "ldm.json"
_SHOWN = 10
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_PADS = {"tokenizer": vocabulary.END, "tokenizer_2": "!"}
"""What the published tokenizers pad with; that of 2.x pads as SDXL's second."""
_NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
_V = ("v", "v_prediction", "v-prediction", "vpred", "velocity")


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleFile(View):
    """The checkpoint of a model in one file; ``open`` files of it live as long as it does."""

    open: tuple[Any, ...] = ()


def open_model(
    file: Path, prediction_type: str | None, given: frozenset[str] = frozenset()
) -> View:
    """The checkpoint of a whole model; ``given`` are parts that the user brings.

    What the file does not hold and nobody brings is absent, with the flag that brings it. Raises
    ``CheckpointError`` for any other file, and says what it is.
    """
    headers, metadata = _read(file)
    architecture = kinds.architecture(file, headers)
    parts = _parts(file, headers)
    facts = _Facts.read(file, architecture, headers, metadata, prediction_type)
    channels = parts["unet"]["conv_in.weight"].shape[1]
    entries: dict[str, Folder | None] = {}
    for name, part in parts.items():
        entries[name] = _part(file, name, part, _config(file, name, part, facts))
    notes, absent = [facts.note], facts.absent
    if facts.prediction_type is not None:
        config = configs.scheduler(
            architecture, channels, facts.prediction_type, zero_snr="ztsnr" in headers
        )
        where = f"{file}/scheduler"
        document = Document(where=f"{where}/scheduler_config.json", value=config)
        entries["scheduler"] = View(where=where, entries={"scheduler_config.json": document})
    encoders = ("text_encoder", "text_encoder_2") if architecture == "sdxl" else ("text_encoder",)
    absent |= {n: _lacks(file, n) for n in ("vae", *encoders) if n not in parts}
    folders, opened = _tokenizers(encoders, architecture, given)
    entries |= folders
    notes += [vocabulary.note()] if folders else []
    for name in (n.replace("text_encoder", "tokenizer") for n in encoders):
        if name not in folders:
            absent[name] = _no_tokenizer(file)
    index = configs.index(architecture, channels)
    index["scheduler"] = ["diffusers", "SchedulerMixin"]
    entries["model_index.json"] = Document(where=f"{file}/model_index.json", value=index)
    return SingleFile(
        where=str(file),
        entries=entries,
        files=(file,),
        absent=absent,
        notes=tuple(notes),
        open=opened,
    )


def open_vae(file: Path, is_sdxl: bool) -> View:
    """The VAE of a file: LDM's names with or without a model around them, or diffusers' names."""
    headers, _ = _read(file)
    tiny = {
        n: h for n, h in headers.items() if n.startswith(("encoder.layers.", "decoder.layers."))
    }
    if tiny and len(tiny) == len(headers):
        return _part(file, "vae", headers, configs.tiny_vae(headers))
    part = headers
    if not any(name.startswith("encoder.down_blocks.") for name in headers):
        names = ("first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
        part = _parts(file, {n: h for n, h in headers.items() if n.startswith(names)}).get(
            "vae", {}
        )
    if not part:
        raise CheckpointError(f"--vae: {file} holds no VAE")
    return _part(file, "vae", part, _checked(file, "vae", configs.vae, part, is_sdxl))


# -------------------------------------------------------------------------------------- reading


def _read(file: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Headers and metadata; a pickle is refused with the line by which its owner converts it."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if file.suffix in _PICKLES or start[:2] == b"PK":
        raise CheckpointError(
            f"{file} is a pickle: refused, since to open one is to run its code. Where you trust "
            'it, convert it once: python -c "import torch; from safetensors.torch import '
            f"save_file; d = torch.load('{file.name}', map_location='cpu', weights_only=True); "
            "d = d.get('state_dict', d); save_file({k: v.clone() for k, v in d.items() if "
            f"hasattr(v, 'clone')}}, '{file.stem}.safetensors')\""
        )
    return checkpoint.file_headers(file, dtypes=None), checkpoint.metadata(file)


@cache
def _map() -> mapping.Map:
    return mapping.read(_MAP)


def _parts(file: Path, headers: Mapping[str, Header]) -> dict[str, dict[str, Header]]:
    """The headers of every part, arranged by the map. Raises ``CheckpointError`` for the rest."""
    layout = arrange(_map(), headers, ())
    _refuse_problems(file, layout)
    parts: dict[str, dict[str, Header]] = {}
    for target, tensor in layout.tensors.items():
        part, _, name = target.partition("/")
        stored = {piece.source: headers[piece.source] for piece in tensor.pieces}
        header = Header(
            dtype=tensor.dtype, shape=tensor.shape, file=file, made=tensor, stored=stored
        )
        parts.setdefault(part, {})[name] = header
    return parts


def _refuse_problems(file: Path, layout: Layout) -> None:
    if layout.clashes:
        target, why = next(iter(layout.clashes.items()))
        raise CheckpointError(f"{file} holds two models: {target} is {why}")
    unknown = [*layout.leftover, *layout.misfit]
    if unknown:
        names = ", ".join(repr(name[:80]) for name in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise CheckpointError(
            f"{file} has {len(unknown)} tensors that no part of Stable Diffusion has: {names}{more}"
        )


def _part(file: Path, name: str, headers: Mapping[str, Header], config: dict[str, Any]) -> View:
    where = f"{file}/{name}"
    text = name.startswith("text_encoder")
    stem = f"{checkpoint.TEXT_WEIGHTS if text else checkpoint.WEIGHTS}.safetensors"
    tensors = Tensors(where=f"{where}/{stem}", file=file, headers=headers)
    document = Document(where=f"{where}/config.json", value=config)
    return View(where=where, entries={"config.json": document, stem: tensors})


def _config(file: Path, name: str, headers: Mapping[str, Header], facts: _Facts) -> dict[str, Any]:
    architecture, sdxl = facts.architecture, facts.architecture == "sdxl"
    if name == "unet":
        v = facts.prediction_type == "v_prediction"
        return _checked(file, name, configs.unet, headers, architecture, facts.pixels, v)
    if name == "vae":
        return _checked(file, name, configs.vae, headers, sdxl, facts.pixels)
    projected = name.endswith("_2")
    return _checked(file, name, configs.text_encoder, headers, architecture, projected)


def _checked(file: Path, name: str, make: Any, *arguments: Any) -> dict[str, Any]:
    """A config by shapes, where the tensors that tell are there and have as many axes."""
    try:
        return make(*arguments)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "tensors of its blocks"
        raise CheckpointError(f"{file}: its {name} is not whole: no {lacking}") from None


# ------------------------------------------------------------------------ what tensors cannot tell


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the metadata, the user or the field's habit says of a model."""

    architecture: str
    prediction_type: str | None
    pixels: int | None
    note: str
    absent: dict[str, str]

    @classmethod
    def read(
        cls,
        file: Path,
        architecture: str,
        headers: Mapping[str, Header],
        metadata: Mapping[str, str],
        asked: str | None,
    ) -> _Facts:
        kind, why = asked, "as asked for"
        named = metadata.get("modelspec.prediction_type", "").lower()
        title = metadata.get("modelspec.architecture", "").lower()
        if kind is None and named:
            kind = "v_prediction" if named in _V else named
            why = "as modelspec.prediction_type in the file says"
            if kind not in ("epsilon", "v_prediction"):
                raise CheckpointError(
                    f"{file}: modelspec.prediction_type is {named[:80]!r}; legal: epsilon, v"
                )
        if kind is None and "v_pred" in headers:
            kind, why = "v_prediction", "as the file's tensor v_pred says"
        if kind is None and architecture == "sd2" and title.startswith("stable-diffusion-v2-"):
            kind = (
                "v_prediction" if "-v" in title.removeprefix("stable-diffusion-v2") else "epsilon"
            )
            why = "as modelspec.architecture in the file says"
        if kind is None and architecture != "sd2":
            kind, why = "epsilon", "assumed: the file does not say"
        absent = {} if kind is not None else {"scheduler": _unsaid(file)}
        name = _NAMES[architecture]
        return cls(
            architecture=architecture,
            prediction_type=kind,
            pixels=_pixels(metadata.get("modelspec.resolution", "")),
            note=f"Read from one file, {file.name}, as {name}; prediction type {kind}, {why}.",
            absent=absent,
        )


def _pixels(resolution: str) -> int | None:
    """The side of a square ``"1024x1024"``, where it is a plausible one."""
    side, _, other = resolution.lower().partition("x")
    plausible = side == other and side.isdecimal() and len(side) < 5
    return int(side) if plausible and int(side) % 64 == 0 and int(side) > 0 else None


def _unsaid(file: Path) -> str:
    return (
        f"{file} is Stable Diffusion 2.x and does not say what it predicts: give --prediction-type "
        "epsilon (512-base) or v_prediction (768-v)"
    )


def _lacks(file: Path, name: str) -> str:
    flag = "--vae FOLDER|FILE" if name == "vae" else "--text-encoder FOLDER"
    return f"{file} holds no {name.replace('_', ' ')}: give {flag}, or name --components"


def _no_tokenizer(file: Path) -> str:
    return (
        f"{file} holds no tokenizer, as no such file does: give --tokenizer FOLDER, or install "
        'CLIP\'s vocabulary with pip install "mtu-export[ldm]"'
    )


def _tokenizers(
    encoders: tuple[str, ...], architecture: str, given: frozenset[str]
) -> tuple[dict[str, Folder | None], tuple[Any, ...]]:
    """Tokenizers out of the installed vocabulary, but for those that the user brings."""
    names = [n.replace("text_encoder", "tokenizer") for n in encoders]
    names = [name for name in names if name not in given]
    source = vocabulary.installed()
    if source is None or not names:
        return {}, ()
    folders: dict[str, Folder | None] = {}
    opened = []
    for name in names:
        pad = "!" if architecture == "sd2" else _PADS[name]
        folders[name], folder = vocabulary.tokenizer(source, pad)
        opened.append(folder)
    return folders, tuple(opened)
