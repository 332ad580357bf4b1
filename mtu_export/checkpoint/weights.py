"""The safetensors files of one component: headers, tensors one by one, and writing shards."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.checkpoint.folder import read_json, refuse_twins
from mtu_export.spec import CheckpointError, MissingWeights, shown

if TYPE_CHECKING:
    import torch

WEIGHTS = "diffusion_pytorch_model"
TEXT_WEIGHTS = "model"
"""Stem of the weight files of a transformers part."""
POSITION_IDS = ("text_model.embeddings.position_ids", "embeddings.position_ids")
"""A table of 0..76 that old text encoders carry; it is no weight."""
SHARD_BYTES = 2_000_000_000
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HEADER_LIMIT = 100_000_000
_MOST_AXES = 8
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_INTEGERS = {"I64": 8, "I32": 4}


@dataclass(frozen=True, kw_only=True)
class Header:
    """One tensor on disk: safetensors dtype (``"F32"``), shape, and the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def weight_files(folder: Path, stem: str = WEIGHTS) -> tuple[Path, ...]:
    """Safetensors files of one component: a single file, or the shards of its index."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        files = tuple(folder / name for name in names)
    elif single.exists():
        files = (single,)
    else:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder / pickles[0]} is a pickle: refused; save the model as safetensors"
            )
        raise CheckpointError(f"{single} is missing")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The index of shards: tensor -> file, each a plain safetensors name of the same folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: weight_map is missing")
    for name in shards.values():
        plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not plain or not name.endswith(".safetensors") or not 12 < len(name.encode()) <= 255:
            raise CheckpointError(f"{index}: shard {shown(name)} is not a safetensors file here")
    return shards


def headers(folder: Path, stem: str = WEIGHTS, ignored: Collection[str] = ()) -> dict[str, Header]:
    """Every tensor of a component by name, from the files' headers alone.

    An index of shards must say of each tensor where it is. Tensors of the names ``ignored`` are
    neither read nor checked.
    """
    found: dict[str, Header] = {}
    for file in weight_files(folder, stem):
        for name, header in file_headers(file, ignored=ignored).items():
            if name in found:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file.name}")
            found[name] = header
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        mapped = _weight_map(index)
        for name in sorted({*mapped, *found}.difference(ignored)):
            there = found[name].file.name if name in found else None
            if mapped.get(name) != there:
                said, real = mapped.get(name, "nowhere"), there or "nowhere"
                raise CheckpointError(
                    f"{index}: tensor {name[:200]!r} is said to be in {said}; it is in {real}"
                )
    return found


def file_headers(
    file: Path, *, integers: bool = False, ignored: Collection[str] = ()
) -> dict[str, Header]:
    """Tensors of one safetensors file by name, with every size checked against the file's.

    With ``integers`` 32- and 64-bit ones are legal beside floats; ``ignored`` are left out.
    """
    try:
        return _read_header(file, {**_SIZES, **(_INTEGERS if integers else {})}, ignored)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None


def _read_header(
    file: Path, sizes: Mapping[str, int], ignored: Collection[str]
) -> dict[str, Header]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            if start[:2] == b"PK" or start[:1] == b"\x80":
                raise CheckpointError(f"{file} is a pickle, not safetensors: refused")
            raise CheckpointError(f"{file} is not a whole safetensors file ({size} bytes)")
        try:
            rows = json.loads(stream.read(length), object_pairs_hook=refuse_twins)
        except (ValueError, RecursionError) as error:
            reason = f": {error}" if "twice" in str(error) else ""
            raise CheckpointError(f"{file}: its safetensors header is damaged{reason}") from None
    if not isinstance(rows, dict):
        raise CheckpointError(f"{file}: its safetensors header is damaged")
    for name in ("__metadata__", *ignored):
        rows.pop(name, None)
    data = size - 8 - length
    return {name: _entry(file, name, row, data, sizes) for name, row in rows.items()}


def _entry(file: Path, name: str, row: Any, data: int, sizes: Mapping[str, int]) -> Header:
    if not name.isprintable() or len(name) > 500:
        raise CheckpointError(f"{file}: {name[:80]!r} is no name of a tensor")
    try:
        dtype, shape = row["dtype"], tuple(row["shape"])
        begin, end = row["data_offsets"]
        numbers = (*shape, begin, end)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
        if not whole or not begin <= end <= data or len(shape) > _MOST_AXES:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: tensor {name!r} has a damaged header or is cut") from None
    if not isinstance(dtype, str) or dtype not in sizes:
        legal = ", ".join(sizes)
        raise CheckpointError(
            f"{file}: tensor {name!r} has dtype {str(dtype)[:40]!r}; legal: {legal}"
        )
    count = 1
    for extent in shape:
        count *= extent
    if count * sizes[dtype] != end - begin:
        raise CheckpointError(f"{file}: tensor {name!r}: shape and size disagree")
    return Header(dtype=dtype, shape=shape, file=file)


def compare(found: Mapping[str, Header], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, extra or of a wrong shape, by name."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [
        f"{name} has shape {list(found[name].shape)!s:.80}, needs {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != tuple(shape)
    ]
    problems = [
        f"{kind}: {', '.join(rows[:3])}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
        for kind, rows in (("missing", missing), ("unknown", extra), ("wrong", wrong))
        if rows
    ]
    if problems:
        raise MissingWeights(f"weights do not fit the config: {'; '.join(problems)}")


def tensor(found: Mapping[str, Header], name: str) -> torch.Tensor:
    """One tensor, memory-mapped: its pages are read when they are used."""
    from safetensors import SafetensorError, safe_open

    file = found[name].file
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def write(
    folder: Path,
    config: Mapping[str, Any],
    rows: Iterable[tuple[str, torch.Tensor]],
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

    for name, tensor in rows:
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
