"""Weights in another layout -> checkpoint of format 1, tensor by tensor.

A map (``adopt.mapping``) says what becomes what; every source tensor has to be taken or dropped,
every tensor of format 1 made once and of its exact shape. Tensors keep their dtype and are
memory-mapped: one shard of the output is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.authoring.adopt import mapping
from mtu_export.authoring.adopt.fitting import expert_widths, fit
from mtu_export.authoring.adopt.layout import Layout, Made, Piece, arrange
from mtu_export.checkpoint import Header, pipeline_files, presets
from mtu_export.checkpoint.presets import TASKS
from mtu_export.graph.tensors import is_finite
from mtu_export.models import mtu
from mtu_export.spec import CheckpointError, MissingWeights, PlanError, UnknownName
from mtu_export.storage.draft import CHECKPOINT, draft

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """A source, the config of its checkpoint, and what its map makes of it."""

    source: Path
    map: Path
    config: Mapping[str, Any]
    found: Mapping[str, Header]
    layout: Layout
    wanted: Mapping[str, tuple[int, ...]]

    def check(self) -> None:
        """Raise ``MissingWeights`` with what is wrong, in one line."""
        problems = self.layout.problems
        if problems:
            more = f"; and {len(problems) - 6} more problems" if len(problems) > 6 else ""
            raise MissingWeights(f"{self.map} does not fit: {'; '.join(problems[:6])}{more}")

    def table(self) -> list[list[str]]:
        """Source, its dtype and shape, operations, target and its shape, as ``--dry-run`` prints.

        Rows of what is filled, dropped, left over and missing follow the mapped ones.
        """
        rows = [["source", "stored", "operations", "target", "shape"]]
        for made in self.layout.made.values():
            shape, needed = str(list(made.shape)), self.wanted.get(made.name)
            if needed != made.shape:
                shape += " (not in format 1)" if needed is None else f" (needs {list(needed)})"
            if made.constant is not None:
                rows.append([f"(constant {made.constant})", made.dtype, "", made.name, shape])
            for piece in made.pieces:
                words = ", ".join(piece.operations) or "as it is"
                rows.append([piece.source, self._stored(piece.source), words, made.name, shape])
        loose = [(name, "(dropped)") for name in self.layout.dropped]
        loose += [(name, "(its rule does not fit)") for name in self.layout.misfit]
        loose += [(name, "(no rule takes it)") for name in self.layout.leftover]
        rows += [[name, self._stored(name), "", word, ""] for name, word in loose]
        for name in self._missing():
            rows.append(["(nothing)", "", "", name, str(list(self.wanted[name]))])
        return rows

    def _missing(self) -> list[str]:
        return [name for name in self.wanted if name not in self.layout.made]

    def _stored(self, source: str) -> str:
        header = self.found[source]
        return f"{header.dtype} {list(header.shape)}"

    def to_json(self) -> dict[str, Any]:
        """What maps to what, as ``--json`` prints it."""
        rows = list(self.layout.made.values())
        return {
            "mapped": [
                {
                    "target": made.name,
                    "shape": list(made.shape),
                    "needs": list(self.wanted[made.name]) if made.name in self.wanted else None,
                    "dtype": made.dtype,
                    "sources": [
                        {
                            "source": piece.source,
                            "shape": list(self.found[piece.source].shape),
                            "operations": list(piece.operations),
                        }
                        for piece in made.pieces
                    ],
                }
                for made in rows
                if made.constant is None
            ],
            "filled": [
                {"target": made.name, "shape": list(made.shape), "value": made.constant}
                for made in rows
                if made.constant is not None
            ],
            "dropped": self.layout.dropped,
            "leftover": [*self.layout.misfit, *self.layout.leftover],
            "missing": self._missing(),
            "problems": self.layout.problems,
        }


def survey(weights: str | Path, map_file: Path) -> Adoption:
    """What the map makes of the weights; reads headers and JSON alone.

    ``weights`` is a safetensors file, a folder with safetensors, a pipeline folder, or a hub id.
    Problems are collected in the layout. Raises ``PlanError`` for the map's own mistakes and
    ``CheckpointError`` for files that cannot be read.
    """
    read = mapping.read(map_file)
    source = _source(weights)
    found = _headers(source)
    config = _config(source, read, map_file)
    layout = arrange(read, found, [task["name"] for task in config["tasks"]])
    try:
        wanted = _wanted(config, expert_widths(layout, config["num_experts"]))
    except CheckpointError as error:
        reason = str(error).removeprefix("unet/config.json ")
        raise PlanError(f"{map_file}: config {reason}") from None
    fit(read, layout, wanted)
    return Adoption(
        source=source, map=map_file, config=config, found=found, layout=layout, wanted=wanted
    )


def write(found: Adoption, out: Path, *, force: bool = False) -> None:
    """Write the checkpoint, whole or not at all, and read it again before it takes its place.

    A pipeline's other parts and the licences beside the weights are copied. Raises
    ``MissingWeights`` (leftovers, NaN), ``CheckpointError`` and ``PlanError``.
    """
    found.check()
    source = found.source
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise PlanError(f"output {str(out)!r} lies inside the source {str(source)!r}")
    index = pipeline_files.read(source) if (source / "unet").is_dir() else {}
    with draft(out, force=force, marker=CHECKPOINT, sources=[source, found.map]) as folder:
        checkpoint.write(folder / "unet", found.config, _rows(found))
        written = checkpoint.headers(folder / "unet")
        checkpoint.check_config(checkpoint.read_config(folder), mtu.STOCK_KEYS)
        checkpoint.compare(written, found.wanted)
        pipeline_files.copy(source if source.is_dir() else source.parent, folder, index)
        pipeline_files.write_index(folder, index)


def adopt(weights: str | Path, out: Path, map_file: Path, *, force: bool = False) -> Adoption:
    """Make a checkpoint of format 1 of ``weights``: :func:`survey`, then :func:`write`."""
    found = survey(weights, map_file)
    write(found, out, force=force)
    return found


# ---------------------------------------------------------------------------------------- source


def _source(weights: str | Path) -> Path:
    try:
        path = Path(weights).expanduser()
        if path.is_file() or path.name.endswith(_SUFFIX):
            return path
    except (OSError, RuntimeError) as error:  # too long, or ~nobody
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"no weights at {str(weights)[:200]!r}: {reason}") from None
    return checkpoint.locate(weights)


def _home(source: Path) -> Path:
    """The folder that holds the UNet's weights and its config."""
    if not source.is_dir():
        return source.parent
    return source / "unet" if (source / "unet").is_dir() else source


def _files(source: Path) -> tuple[Path, ...]:
    """The one file, or the shards of the one index, of a source."""
    if not source.is_dir():
        if not source.is_file():
            raise CheckpointError(f"{source} is missing")
        return (source,)
    home = _home(source)
    stems = {
        path.name.removesuffix(_INDEX) for path in home.glob(f"*{_INDEX}") if path.name[0] != "."
    }
    shards = {path for stem in stems for path in checkpoint.weight_files(home, stem)}
    single = {path for path in home.glob(f"*{_SUFFIX}") if path.name[0] != "."} - shards
    stems |= {path.name.removesuffix(_SUFFIX) for path in single}
    if len(stems) > 1:
        names = ", ".join(sorted(stems)[:6])
        raise CheckpointError(f"{home} has weights of several names ({names}); name one file")
    return checkpoint.weight_files(home, stems.pop() if stems else checkpoint.WEIGHTS)


def _headers(source: Path) -> dict[str, Header]:
    """Every tensor of a source; here any dtype is read, as some tensors are dropped later."""
    found: dict[str, Header] = {}
    for file in _files(source):
        for name, header in checkpoint.file_headers(file, dtypes=None).items():
            if name in found:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file.name}")
            found[name] = header
    return found


# ---------------------------------------------------------------------------------------- config


def _config(source: Path, read: mapping.Map, map_file: Path) -> dict[str, Any]:
    """The config beside the weights with the map's over it; null removes a foreign key."""
    beside = _home(source) / "config.json"
    config = checkpoint.read_json(beside) if beside.is_file() else {}
    config = checkpoint.without_training_keys(config)
    legal = {*checkpoint.MTU_KEYS, *mtu.STOCK_KEYS}
    config = {**config, **read.config}
    foreign = [key for key, value in config.items() if key not in legal and value is None]
    legal.add(checkpoint.RESCALE)
    config = {
        key: value
        for key, value in config.items()
        if key in legal or not (key.startswith("_") or key in foreign)
    }
    unknown = [key for key in config if key not in legal]
    if unknown:
        raise PlanError(
            f"{map_file}: the config has keys that format 1 does not know: "
            f"{', '.join(key[:80] for key in unknown)}; null in the map's config leaves one out"
        )
    config = {"mtu_format": checkpoint.FORMAT, "task_norm": "replace", **config}
    config["_class_name"] = "MTUUNet2DConditionModel"
    try:
        config["tasks"] = _tasks(config)
        checkpoint.check_config(config, mtu.STOCK_KEYS)
    except CheckpointError as error:
        reason = str(error).removeprefix("unet/config.json: ")
        raise PlanError(f"{map_file}: config: {reason}") from None
    return config


def _tasks(config: Mapping[str, Any]) -> list[Any]:
    """Task objects as they are, presets by their names."""
    rows = config.get("tasks")
    if not isinstance(rows, list) or not rows:
        raise CheckpointError("tasks must be a list of task objects and preset names")
    for row in rows:
        if isinstance(row, str) and row not in TASKS:
            raise UnknownName("task preset", row, [*TASKS, "a task object"])
    named = [
        presets.resolve_tasks([row], config)[0].to_json() if isinstance(row, str) else row
        for row in rows
    ]
    return [task.to_json() for task in checkpoint.tasks({"tasks": named})]


def _wanted(
    config: Mapping[str, Any], widths: Mapping[str, Mapping[int, int]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of format 1 for a config; a block's unknown experts get its first width."""
    number = config["num_experts"]
    rows = {
        path: tuple(found.get(i, next(iter(found.values()))) for i in range(number))
        for path, found in widths.items()
    }
    with mtu.as_checkpoint_error(), torch.device("meta"):
        model = mtu.MTUUNet2DConditionModel.from_config(dict(config), expert_widths=rows)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------------------- tensors


def _rows(found: Adoption) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of format 1 in turn; refuses NaN and Inf by name."""
    for name in found.wanted:
        value = build(found.layout.made[name], found.found)
        if not is_finite(value):
            names = ", ".join(repr(row.source) for row in found.layout.made[name].pieces[:3])
            raise MissingWeights(f"tensor {name!r} (from {names}) holds NaN or Inf")
        yield name, value


def build(made: Made, found: Mapping[str, Header]) -> Tensor:
    """One tensor of format 1 from the memory-mapped sources of its pieces."""
    if made.constant is not None:
        return torch.full(made.shape, made.constant, dtype=_DTYPES[made.dtype])
    values = [_piece(piece, found) for piece in made.pieces]
    join = made.pieces[0].rule.join
    if join is None:
        return values[0]
    return (torch.stack if join.kind == "stack" else torch.cat)(values, join.axis)


def _piece(piece: Piece, found: Mapping[str, Header]) -> Tensor:
    rule, value = piece.rule, checkpoint.tensor(found, piece.source)
    if rule.transpose is not None:
        value = value.permute(rule.transpose)
    if piece.part is not None:
        axis, start, stop = piece.part
        value = (
            value.narrow(axis, start, stop - start) if piece.whole else value.select(axis, start)
        )
    if rule.swap_halves is not None:
        first, second = value.chunk(2, rule.swap_halves)
        value = torch.cat([second, first], rule.swap_halves)
    return value
