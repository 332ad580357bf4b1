"""The safetensors files of one component: headers, tensors one by one, and writing shards."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtu_export.checkpoint.folder import is_lfs_pointer, lfs_message, read_json, strict_json
from mtu_export.checkpoint.variants import variant_of, variants
from mtu_export.checkpoint.view import Entry, Folder, Tensors, children, sources
from mtu_export.spec import CheckpointError, MissingWeights, first_line, shown

if TYPE_CHECKING:
    import torch

    from mtu_export.checkpoint.maps.layout import TargetTensor

WEIGHTS = "diffusion_pytorch_model"
TEXT_WEIGHTS = "model"
"""Stem of the weight files of a transformers part."""
POSITION_IDS = ("text_model.embeddings.position_ids", "embeddings.position_ids")
"""A table of 0..76 that old text encoders carry; it is no weight."""
SHARD_BYTES = 2_000_000_000
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_LONGEST_NAME = 500
_LONGEST_HEADER = 32_000_000
FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes that weights may have."""
INTEGERS = ("I64", "I32")


@dataclass(frozen=True, kw_only=True)
class Header:
    """One tensor on disk: safetensors dtype (``"F32"``), shape, and the file that holds it.

    One that the file holds in another layout is ``made`` of the tensors ``stored`` there.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    made: TargetTensor | None = None
    stored: Mapping[str, Header] = field(default_factory=dict, repr=False, compare=False)


def weight_files(folder: Folder, stem: str = WEIGHTS) -> tuple[Path, ...]:
    """Safetensors files of one component: a single file, or the shards of its index."""
    return tuple(dict.fromkeys(path for file in _files(folder, stem) for path in sources(file)))


def _files(folder: Folder, stem: str) -> tuple[Folder, ...]:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        files = tuple(folder / name for name in names)
    else:
        files = (single,)
    for file in files:
        if not file.is_file():
            _refuse_missing(folder, file, index if index.is_file() else None, stem)
    return files


def _refuse_missing(folder: Folder, file: Folder, index: Folder | None, stem: str) -> NoReturn:
    """Say that weights are missing, and name what is there in their place."""
    there = list(children(folder))
    able = variants(there, stem)
    pickles = [n for n in there if n.endswith(_PICKLES) and not n.startswith(".")]
    if able and index is None:
        raise CheckpointError(
            f"{file} is missing; the folder has the variant {', '.join(able)}: "
            f"{variant_of(there, stem, able[0])}; give --variant {able[0]}"
        )
    if pickles and index is None:
        raise CheckpointError(
            f"{folder / pickles[0]} is a pickle: refused; save the model as safetensors"
        )
    raise CheckpointError(f"{file} is missing")


def _weight_map(index: Folder) -> dict[str, str]:
    """The index of shards: tensor -> file, each a plain safetensors name of the same folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: weight_map is missing")
    for name in shards.values():
        plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not plain or not name.endswith(".safetensors") or not 12 < len(name.encode()) <= 255:
            raise CheckpointError(f"{index}: shard {shown(name)} is not a safetensors file here")
    return shards


def headers(
    folder: Folder, stem: str = WEIGHTS, ignored: Collection[str] = ()
) -> dict[str, Header]:
    """Every tensor of a component by name, from the files' headers alone.

    An index of shards must say of each tensor where it is. Tensors of the names ``ignored`` are
    neither read nor checked.
    """
    tensors: dict[str, Header] = {}
    for file in _files(folder, stem):
        for name, header in file_headers(file, ignored=ignored).items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: tensor {name!r} is also in {tensors[name].file.name}"
                )
            tensors[name] = header
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        mapped = _weight_map(index)
        for name in sorted({*mapped, *tensors}.difference(ignored)):
            actual = tensors[name].file.name if name in tensors else None
            if mapped.get(name) != actual:
                raise CheckpointError(
                    f"{index}: weight_map puts tensor {name[:200]!r} in "
                    f"{mapped.get(name, 'no file')}; it is in {actual or 'no file'}"
                )
    return tensors


def file_headers(
    file: Folder, *, dtypes: Collection[str] | None = FLOATS, ignored: Collection[str] = ()
) -> dict[str, Header]:
    """Tensors of one safetensors file by name, read from its header by safetensors itself.

    Refuses odd names and dtypes outside ``dtypes``; with None neither is looked at. Tensors
    ``ignored`` are left out.
    """
    from safetensors import SafetensorError, safe_open

    if isinstance(file, Tensors):
        return {name: header for name, header in file.headers.items() if name not in ignored}
    if isinstance(file, Entry):
        raise CheckpointError(f"{file} is missing")
    headers: dict[str, Header] = {}
    _refuse_ambiguous(file)
    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name not in ignored:
                    tensor = opened.get_slice(name)
                    shape, dtype = tuple(tensor.get_shape()), str(tensor.get_dtype())
                    headers[name] = Header(dtype=dtype, shape=shape, file=file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_why_unread(file, error)) from None
    if dtypes is None:
        return headers
    for name, header in headers.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise CheckpointError(f"{file}: {name[:80]!r} is not a tensor name")
        if header.dtype not in dtypes:
            legal = ", ".join(dtypes)
            raise CheckpointError(
                f"{file}: tensor {name!r} has dtype {header.dtype!r}; legal: {legal}"
            )
    return headers


def metadata(file: Path) -> dict[str, str]:
    """The texts in a safetensors header's ``__metadata__``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_why_unread(file, error)) from None


def _refuse_ambiguous(file: Path) -> None:
    """Refuse a header of absurd length, and one with a key twice, which readers read differently.

    Whatever else is wrong with a file safetensors says.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                return
            if length > _LONGEST_HEADER:
                raise CheckpointError(
                    f"{file} has a header of {length:,} bytes; at most {_LONGEST_HEADER:,} are read"
                )
            strict_json(stream.read(length))
    except (OSError, ValueError) as error:
        if "appears twice" in str(error):
            raise CheckpointError(f"{file}: its header: {error}") from None


def _why_unread(file: Path, error: Exception) -> str:
    """What a file is that safetensors does not read, by its first bytes.

    A header's length may begin as a pickle does, so this is asked only of such a file.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as problem:
        return f"{file} cannot be read: {problem.strerror}"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return f"{file} is a pickle, not safetensors: refused"
    if is_lfs_pointer(start):
        return lfs_message(file)
    return f"{file} is not a whole safetensors file: {first_line(error)}"


def compare(headers: Mapping[str, Header], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, unknown or of a wrong shape, by name."""
    missing = [name for name in expected if name not in headers]
    unknown = [name for name in headers if name not in expected]
    wrong = [
        f"{name} has shape {list(headers[name].shape)!s:.80}, needs {list(shape)}"
        for name, shape in expected.items()
        if name in headers and headers[name].shape != tuple(shape)
    ]
    problems = [
        f"{kind}: {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in (("missing", missing), ("unknown", unknown), ("wrong", wrong))
        if names
    ]
    if problems:
        raise MissingWeights(f"weights do not fit the config: {'; '.join(problems)}")


def tensor(headers: Mapping[str, Header], name: str) -> torch.Tensor:
    """One tensor, memory-mapped: its pages are read when they are used."""
    from safetensors import SafetensorError, safe_open

    header = headers[name]
    if header.made is not None:
        from mtu_export.checkpoint.maps.building import build

        return build(header.made, header.stored)
    file = header.file
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_bytes: int = SHARD_BYTES,
    stem: str = WEIGHTS,
) -> None:
    """Write ``config.json`` and the tensors as they come; at most one shard is in memory.

    ``stem`` begins the names of the weight files.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    shards: list[tuple[Path, list[str]]] = []
    total, size = 0, 0
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = folder / f"{stem}-{len(shards) + 1:05d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append((path, list(shard)))
        shard.clear()

    for name, tensor in tensors:
        bytes_here = tensor.numel() * tensor.element_size()
        if shard and size + bytes_here > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor.clone(memory_format=torch.contiguous_format)
        size, total = size + bytes_here, total + bytes_here
    flush()
    _name_shards(folder, stem, shards, total)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def _name_shards(folder: Path, stem: str, shards: list[tuple[Path, list[str]]], total: int) -> None:
    """Give shards their final names, with the index; a single shard has neither."""
    if len(shards) == 1:
        shards[0][0].rename(folder / f"{stem}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(shards, 1):
        final = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = folder / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
