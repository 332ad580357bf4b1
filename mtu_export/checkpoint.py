"""The checkpoint folder of format 1 on disk: where it is, its config, its weights.

Reads no tensor data unless asked and imports torch only to hand tensors over. A pickle is
refused and never opened. Errors are ``CheckpointError`` with the file's name.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import CheckpointError, MissingWeights, Task, ToolchainMissing

if TYPE_CHECKING:
    import torch

FORMAT = 1
MTU_KEYS = (
    "mtu_format",
    "num_experts",
    "task_embedding_dim",
    "router_hidden_dim",
    "tasks",
    "task_norm",
)
"""Keys that ``unet/config.json`` has beside those of a stock UNet."""
STOCK_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": None,
    "cross_attention_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
}
"""Defaults of the stock UNet for the keys that are read here; a config may leave them out."""
CLASS_SUFFIX = "UNet2DConditionModel"
EMBEDDED = Path(__file__).parent / "checkpoints" / "tiny-random"
WEIGHTS = "diffusion_pytorch_model"
SHARD_BYTES = 2_000_000_000
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HEADER_LIMIT = 100_000_000
_LARGEST = 2**24
_DEEPEST = 128
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, kw_only=True)
class Header:
    """One tensor on disk: safetensors dtype (``"F32"``), shape, and the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def locate(model: str | Path | None, revision: str | None = None) -> Path:
    """Folder of a checkpoint: a local path, a hub id (``owner/name``), or None: the embedded.

    ``revision`` is a branch, tag or commit of the hub.
    """
    if model is None:
        return EMBEDDED
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{str(folder)!r} is a file; a checkpoint is a folder with unet/")
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"no checkpoint folder {str(model)!r}")
    return _download(str(model), revision)


def _download(hub_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ToolchainMissing("huggingface_hub", "all") from None
    try:
        found = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "LICENSE*"],
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{hub_id!r} is neither a folder nor reachable on the hub: {reason}"
        ) from None
    return Path(found)


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, stays in ``folder`` or in its repository's hub cache."""
    home = folder.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    return home in path.resolve().parents


def licences(folder: Path) -> list[Path]:
    """The licence files of a checkpoint; a link that leaves it is left out."""
    files = [path for path in sorted(folder.glob("LICENSE*")) if path.is_file()]
    return [path for path in files if stays_inside(path, folder)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; anything else is a ``CheckpointError``."""
    try:
        found = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def read_config(folder: Path) -> dict[str, Any]:
    """``unet/config.json`` with the stock defaults; format, family and sizes are checked."""
    if not (folder / "unet").is_dir():
        raise CheckpointError(f"{folder} has no unet/ folder: not a checkpoint")
    config = {**STOCK_DEFAULTS, **read_json(folder / "unet" / "config.json")}
    family(config)
    _check_format(config)
    check_sizes(config)
    return config


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes of another type than a UNet's, or absurd ones, before anything is built."""
    where = "unet/config.json"
    for key in ("in_channels", "out_channels", "cross_attention_dim"):
        value = config.get(key, STOCK_DEFAULTS[key])
        if not _is_size(value):
            raise CheckpointError(f"{where}: {key} must be a positive integer, got {value!r}")
    levels = config.get("block_out_channels", STOCK_DEFAULTS["block_out_channels"])
    if not isinstance(levels, (list, tuple)) or not levels or not all(map(_is_size, levels)):
        raise CheckpointError(f"{where}: block_out_channels must be a list of positive integers")
    for key, value in config.items():
        rows = [value]
        while rows:
            row = rows.pop()
            rows += row if isinstance(row, (list, tuple)) else ()
            if isinstance(row, int) and abs(row) > _LARGEST:
                raise CheckpointError(f"{where}: {key} is absurdly large: {row}")
            deep = key.endswith(("layers_per_block", "num_experts"))
            if (deep and isinstance(row, int) and row > _DEEPEST) or (
                isinstance(row, (list, tuple)) and len(row) > 4096
            ):
                raise CheckpointError(f"{where}: {key} is absurdly large")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_format(config: Mapping[str, Any]) -> None:
    version = config.get("mtu_format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"unet/config.json: mtu_format must be {FORMAT}, got {version!r}")
    if version > FORMAT:
        raise CheckpointError(
            f"unet/config.json: mtu_format {version} needs a newer mtu-export "
            f"(this one reads format {FORMAT})"
        )


def family(config: Mapping[str, Any]) -> str:
    """Name of the checkpoint's family: ``MTUUNet2DConditionModel`` -> ``"mtu"``."""
    name = config.get("_class_name")
    if name == CLASS_SUFFIX:
        raise CheckpointError(
            "the UNet is dense (UNet2DConditionModel); make a checkpoint of it first with: "
            "mtu-export upcycle SOURCE OUT --task ..."
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9]*" + CLASS_SUFFIX, name):
        raise CheckpointError(f"unet/config.json: _class_name {name!r} is not one of ours")
    return name.removesuffix(CLASS_SUFFIX).lower()


def tasks(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a config, checked; names are unique."""
    found = config.get("tasks")
    if not isinstance(found, (list, tuple)) or not found:
        raise CheckpointError("unet/config.json: tasks must be a list of at least one task")
    rows = tuple(Task.from_json(row, index) for index, row in enumerate(found))
    names = [task.name for task in rows]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(f"unet/config.json: task {name!r} is there twice")
    return rows


def check_config(config: Mapping[str, Any], stock_keys: Iterable[str]) -> None:
    """Refuse a newer format, unknown keys and values that format 1 does not allow."""
    where = "unet/config.json"
    _check_format(config)
    check_sizes(config)
    for key in ("num_experts", "task_embedding_dim", "router_hidden_dim"):
        value = config.get(key)
        if not _is_size(value):
            raise CheckpointError(f"{where}: {key} must be a positive integer, got {value!r}")
    if config.get("task_norm", "replace") not in ("replace", "stacked"):
        raise CheckpointError(
            f"{where}: task_norm must be 'replace' or 'stacked', got {config['task_norm']!r}"
        )
    legal = {*MTU_KEYS, *stock_keys}
    for key in config:
        if not key.startswith("_") and key not in legal:
            raise CheckpointError(f"{where}: unknown key {key!r}")
    names = {task.name for task in tasks(config)}
    if config.get("task_norm") == "stacked" and names & {"weight", "bias"}:
        raise CheckpointError(
            f"{where}: with stacked norms no task can be named 'weight' or 'bias': these are the "
            "names of the shared norm's tensors"
        )


def stock_config(config: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """The config of the stock ``UNet2DConditionModel`` that a folded task is."""
    kept = {k: v for k, v in config.items() if k not in MTU_KEYS and not k.startswith("_")}
    return {**kept, "in_channels": in_channels, "_class_name": CLASS_SUFFIX}


# -------------------------------------------------------------------------------------- weights


def weight_files(folder: Path, stem: str = WEIGHTS) -> tuple[Path, ...]:
    """Safetensors files of one component: a single file, or the shards of its index."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if Path(name).name != name or not re.fullmatch(r".{1,200}\.safetensors", name):
                raise CheckpointError(
                    f"{index}: shard {name[:80]!r} is not a safetensors file here"
                )
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


def headers(folder: Path, stem: str = WEIGHTS) -> dict[str, Header]:
    """Every tensor of a component by name, from the files' headers alone."""
    found: dict[str, Header] = {}
    for file in weight_files(folder, stem):
        for name, header in _header(file).items():
            if name in found:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file.name}")
            found[name] = header
    return found


def _header(file: Path) -> dict[str, Header]:
    """Header of one safetensors file, with every size checked against the file's."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            if start[:2] == b"PK" or start[:1] == b"\x80":
                raise CheckpointError(f"{file} is a pickle, not safetensors: refused")
            raise CheckpointError(f"{file} is not a whole safetensors file ({size} bytes)")
        try:
            rows = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise CheckpointError(f"{file}: its safetensors header is damaged") from None
    if not isinstance(rows, dict):
        raise CheckpointError(f"{file}: its safetensors header is damaged")
    rows.pop("__metadata__", None)
    return {name: _entry(file, name, row, size - 8 - length) for name, row in rows.items()}


def _entry(file: Path, name: str, row: Any, data: int) -> Header:
    try:
        dtype, shape = row["dtype"], tuple(row["shape"])
        begin, end = row["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not begin <= end <= data:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: tensor {name!r} has a damaged header or is cut") from None
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise CheckpointError(
            f"{file}: tensor {name!r} has dtype {dtype}; legal: {', '.join(_SIZES)}"
        )
    count = 1
    for extent in shape:
        count *= extent
    if count * _SIZES[dtype] != end - begin:
        raise CheckpointError(f"{file}: tensor {name!r}: shape and size disagree")
    return Header(dtype=dtype, shape=shape, file=file)


def compare(found: Mapping[str, Header], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, extra or of a wrong shape, by name."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [
        f"{name} has shape {list(found[name].shape)}, needs {list(shape)}"
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
) -> None:
    """Write ``config.json`` and the tensors as they come; at most one shard is in memory."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    shards: list[tuple[Path, list[str]]] = []
    total, size = 0, 0
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = folder / f"{WEIGHTS}-{len(shards) + 1:05d}.safetensors"
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
    _name_shards(folder, shards, total)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def _name_shards(folder: Path, shards: list[tuple[Path, list[str]]], total: int) -> None:
    """Give shards their final names, with the index; a single shard has neither."""
    if len(shards) == 1:
        shards[0][0].rename(folder / f"{WEIGHTS}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(shards, 1):
        final = f"{WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = folder / f"{WEIGHTS}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
